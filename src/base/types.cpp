// Names and sizes of element types.
#include "nibble/types.h"

#include <array>
#include <utility>

#include "base/error.h"

namespace nibble {
namespace {

struct TypeRow {
  DType dtype;
  int64_t size_bytes;
  std::string_view name;
};

constexpr std::array<TypeRow, 10> kTypes{{{DType::f64, 8, "float64"},
                                          {DType::f32, 4, "float32"},
                                          {DType::f16, 2, "float16"},
                                          {DType::bf16, 2, "bfloat16"},
                                          {DType::i64, 8, "int64"},
                                          {DType::i32, 4, "int32"},
                                          {DType::i16, 2, "int16"},
                                          {DType::i8, 1, "int8"},
                                          {DType::u8, 1, "uint8"},
                                          {DType::boolean, 1, "bool"}}};

}  // namespace

int64_t size_of(DType dtype) { return kTypes[static_cast<size_t>(dtype)].size_bytes; }

std::string_view name_of(DType dtype) { return kTypes[static_cast<size_t>(dtype)].name; }

DType dtype_from_name(std::string_view name) {
  const std::string_view bare = name.starts_with("torch.") ? name.substr(6) : name;
  for (const auto& row : kTypes)
    if (row.name == bare) return row.dtype;
  fail(ErrorCode::invalid_argument, "unknown dtype '{}'; expected float32, float16, bfloat16, uint8, ...", name);
}

}  // namespace nibble
