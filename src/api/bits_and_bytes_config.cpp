// The rules of BitsAndBytesConfig.
#include <cmath>

#include "base/error.h"
#include "nibble/model.h"
#include "quant/format.h"

namespace nibble {

void BitsAndBytesConfig::validate() const {
  require(!(load_in_4bit && load_in_8bit),
          "load_in_4bit and load_in_8bit are both True, but only one can be used at the same time");
  require(std::isfinite(llm_int8_threshold) && llm_int8_threshold >= 0,
          "llm_int8_threshold: found {}, expected a number of 0 or more", llm_int8_threshold);
  require(bnb_4bit_quant_type == "nf4" || bnb_4bit_quant_type == "fp4",
          "bnb_4bit_quant_type: found '{}', expected nf4 or fp4", bnb_4bit_quant_type);
  require(quant::is_valid_block_size(bnb_4bit_blocksize),
          "bnb_4bit_blocksize: found {}, expected 32, 64, 128, 256, 512, 1024, 2048 or 4096", bnb_4bit_blocksize);
  const auto is_float = [](DType dtype) { return dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16; };
  require(is_float(bnb_4bit_compute_dtype), "bnb_4bit_compute_dtype: found {}, expected float32, bfloat16 or float16",
          name_of(bnb_4bit_compute_dtype));
  require(is_float(bnb_4bit_quant_storage) || bnb_4bit_quant_storage == DType::u8,
          "bnb_4bit_quant_storage: found {}, expected uint8, float16, bfloat16 or float32",
          name_of(bnb_4bit_quant_storage));
}

}  // namespace nibble
