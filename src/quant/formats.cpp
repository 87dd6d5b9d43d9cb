// The list of formats, one line each.
#include "quant/format.h"

namespace nibble::quant {
namespace {

constexpr std::array<Format, 5> kFormats{{
    {"nf4", Family::code_book_4bit, 4, 64, &kNf4, nullptr},
    {"fp4", Family::code_book_4bit, 4, 64, &kFp4, nullptr},
    {"dynamic8_signed", Family::blockwise_8bit, 8, 4096, nullptr, kDynamicSigned.data()},
    {"dynamic8_unsigned", Family::blockwise_8bit, 8, 4096, nullptr, kDynamicUnsigned.data()},
    {"int8_vectorwise", Family::int8_vectorwise, 8, 0, nullptr, nullptr},
}};

}  // namespace

std::span<const Format> formats() { return kFormats; }

const Format* find_format(std::string_view name) {
  for (const Format& format : kFormats)
    if (format.name == name) return &format;
  return nullptr;
}

bool is_valid_block_size(int64_t block) { return block >= 32 && block <= 4096 && (block & (block - 1)) == 0; }

}  // namespace nibble::quant
