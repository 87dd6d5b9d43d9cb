// The block types of ggml: how many values share a scale, where their bits lie, and how they become floats
// (docs/formats/gguf.md).
#include <algorithm>
#include <array>
#include <cstring>

#include "base/half.h"
#include "checkpoint/gguf.h"

namespace nibble {
namespace {

// Every type with a known size, so that files which hold an unsupported one can still be listed.
constexpr std::array<GgmlType, 33> kTypes{{
    {0, "F32", 1, 4},         {1, "F16", 1, 2},         {2, "Q4_0", 32, 18},      {3, "Q4_1", 32, 20},
    {6, "Q5_0", 32, 22},      {7, "Q5_1", 32, 24},      {8, "Q8_0", 32, 34},      {9, "Q8_1", 32, 40},
    {10, "Q2_K", 256, 84},    {11, "Q3_K", 256, 110},   {12, "Q4_K", 256, 144},   {13, "Q5_K", 256, 176},
    {14, "Q6_K", 256, 210},   {15, "Q8_K", 256, 292},   {16, "IQ2_XXS", 256, 66}, {17, "IQ2_XS", 256, 74},
    {18, "IQ3_XXS", 256, 98}, {19, "IQ1_S", 256, 50},   {20, "IQ4_NL", 32, 18},   {21, "IQ3_S", 256, 110},
    {22, "IQ2_S", 256, 82},   {23, "IQ4_XS", 256, 136}, {24, "I8", 1, 1},         {25, "I16", 1, 2},
    {26, "I32", 1, 4},        {27, "I64", 1, 8},        {28, "F64", 1, 8},        {29, "IQ1_M", 256, 56},
    {30, "BF16", 1, 2},       {34, "TQ1_0", 256, 54},   {35, "TQ2_0", 256, 66},   {39, "MXFP4", 32, 17},
    {40, "NVFP4", 64, 36},
}};

float f16_at(const uint8_t* bytes) {
  f16_t value;
  std::memcpy(&value, bytes, sizeof value);
  return to_float(value);
}

void decode_f32(const uint8_t* block, float* out) { std::memcpy(out, block, sizeof(float)); }
void decode_f16(const uint8_t* block, float* out) { *out = f16_at(block); }
void decode_bf16(const uint8_t* block, float* out) {
  bf16_t value;
  std::memcpy(&value, block, sizeof value);
  *out = to_float(value);
}

// 32 values: f16 scale, [f16 minimum], 16 bytes whose low halves are values 0..15 and high halves 16..31.
void decode_q4_0(const uint8_t* block, float* out) {
  const float scale = f16_at(block);
  for (int i = 0; i < 16; ++i) {
    out[i] = scale * static_cast<float>((block[2 + i] & 15) - 8);
    out[i + 16] = scale * static_cast<float>((block[2 + i] >> 4) - 8);
  }
}

void decode_q4_1(const uint8_t* block, float* out) {
  const float scale = f16_at(block), minimum = f16_at(block + 2);
  for (int i = 0; i < 16; ++i) {
    out[i] = scale * static_cast<float>(block[4 + i] & 15) + minimum;
    out[i + 16] = scale * static_cast<float>(block[4 + i] >> 4) + minimum;
  }
}

// The 5th bits of 32 values lie in 4 bytes before their low 4 bits.
int five_bits(const uint8_t* high, const uint8_t* low, int i) {
  const int nibble = i < 16 ? low[i] & 15 : low[i - 16] >> 4;
  return nibble | ((high[i / 8] >> (i % 8)) & 1) << 4;
}

void decode_q5_0(const uint8_t* block, float* out) {
  const float scale = f16_at(block);
  for (int i = 0; i < 32; ++i) out[i] = scale * static_cast<float>(five_bits(block + 2, block + 6, i) - 16);
}

void decode_q5_1(const uint8_t* block, float* out) {
  const float scale = f16_at(block), minimum = f16_at(block + 2);
  for (int i = 0; i < 32; ++i) out[i] = scale * static_cast<float>(five_bits(block + 4, block + 8, i)) + minimum;
}

void decode_q8_0(const uint8_t* block, float* out) {
  const float scale = f16_at(block);
  for (int i = 0; i < 32; ++i) out[i] = static_cast<float>(static_cast<int8_t>(block[2 + i])) * scale;
}

void decode_iq4_nl(const uint8_t* block, float* out) {
  constexpr std::array<float, 16> kValues{-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
  const float scale = f16_at(block);
  for (size_t i = 0; i < 16; ++i) {
    out[i] = scale * kValues[block[2 + i] & 15];
    out[i + 16] = scale * kValues[block[2 + i] >> 4];
  }
}

// K types hold 256 values. Value i = 128 * half + 32 * plane + l: byte 32 * half + l, bits 2 * plane of 2-bit codes.
void decode_q2_k(const uint8_t* block, float* out) {
  const uint8_t *scales = block, *codes = block + 16;
  const float scale = f16_at(block + 80), minimum = f16_at(block + 82);
  for (int i = 0; i < 256; ++i) {
    const int half = i / 128, plane = i / 32 % 4, group = i / 16;
    const float group_scale = scale * static_cast<float>(scales[group] & 15);
    const float group_minimum = minimum * static_cast<float>(scales[group] >> 4);
    const int code = (codes[32 * half + i % 32] >> (2 * plane)) & 3;
    out[i] = group_scale * static_cast<float>(code) - group_minimum;
  }
}

// 16 scales of 6 bits: low halves in 8 bytes, upper bits in 4. A set bit of the mask takes the offset of -4 away.
void decode_q3_k(const uint8_t* block, float* out) {
  const uint8_t *mask = block, *codes = block + 32, *scales = block + 96;
  const float scale = f16_at(block + 108);
  for (int i = 0; i < 256; ++i) {
    const int half = i / 128, plane = i / 32 % 4, group = i / 16;
    const int low = group < 8 ? scales[group] & 15 : scales[group - 8] >> 4;
    const int high = (scales[8 + group % 4] >> (2 * (group / 4))) & 3;
    const float group_scale = scale * static_cast<float>((low | high << 4) - 32);
    const int code = (codes[32 * half + i % 32] >> (2 * plane)) & 3;
    const int offset = (mask[i % 32] >> (4 * half + plane)) & 1 ? 0 : 4;
    out[i] = group_scale * static_cast<float>(code - offset);
  }
}

struct ScaleAndMinimum {
  int scale, minimum;
};

// 8 scales and 8 minimums of 6 bits in 12 bytes: the upper two bits of the last four lie on top of the first four.
ScaleAndMinimum six_bits(const uint8_t* packed, int group) {
  if (group < 4) return {packed[group] & 63, packed[group + 4] & 63};
  return {(packed[group + 4] & 15) | (packed[group - 4] >> 6) << 4, (packed[group + 4] >> 4) | (packed[group] >> 6)
                                                                                                   << 4};
}

// 8 groups of 32; groups 2p and 2p + 1 are the low and high halves of bytes 32p to 32p + 31.
void decode_q4_k(const uint8_t* block, float* out) {
  const uint8_t *packed = block + 4, *codes = block + 16;
  const float scale = f16_at(block), minimum = f16_at(block + 2);
  for (int group = 0; group < 8; ++group) {
    const auto six = six_bits(packed, group);
    const float group_scale = scale * static_cast<float>(six.scale),
                group_minimum = minimum * static_cast<float>(six.minimum);
    for (int l = 0; l < 32; ++l) {
      const int code = (codes[group / 2 * 32 + l] >> (4 * (group % 2))) & 15;
      out[group * 32 + l] = group_scale * static_cast<float>(code) - group_minimum;
    }
  }
}

void decode_q5_k(const uint8_t* block, float* out) {
  const uint8_t *packed = block + 4, *high = block + 16, *codes = block + 48;
  const float scale = f16_at(block), minimum = f16_at(block + 2);
  for (int group = 0; group < 8; ++group) {
    const auto six = six_bits(packed, group);
    const float group_scale = scale * static_cast<float>(six.scale),
                group_minimum = minimum * static_cast<float>(six.minimum);
    for (int l = 0; l < 32; ++l) {
      const int code = ((codes[group / 2 * 32 + l] >> (4 * (group % 2))) & 15) | ((high[l] >> group) & 1) << 4;
      out[group * 32 + l] = group_scale * static_cast<float>(code) - group_minimum;
    }
  }
}

void decode_q6_k(const uint8_t* block, float* out) {
  const uint8_t *low = block, *high = block + 128, *scales = block + 192;
  const float scale = f16_at(block + 208);
  for (int i = 0; i < 256; ++i) {
    const int half = i / 128, plane = i / 32 % 4, l = i % 32;
    const int nibble = (low[64 * half + 32 * (plane % 2) + l] >> (4 * (plane / 2))) & 15;
    const int code = nibble | ((high[32 * half + l] >> (2 * plane)) & 3) << 4;
    const float group_scale = scale * static_cast<float>(static_cast<int8_t>(scales[i / 16]));
    out[i] = group_scale * static_cast<float>(code - 32);
  }
}

struct Decoder {
  uint32_t type;
  void (*decode)(const uint8_t* block, float* out);  // one block
};

constexpr std::array<Decoder, 14> kDecoders{{{0, decode_f32},
                                             {1, decode_f16},
                                             {2, decode_q4_0},
                                             {3, decode_q4_1},
                                             {6, decode_q5_0},
                                             {7, decode_q5_1},
                                             {8, decode_q8_0},
                                             {10, decode_q2_k},
                                             {11, decode_q3_k},
                                             {12, decode_q4_k},
                                             {13, decode_q5_k},
                                             {14, decode_q6_k},
                                             {20, decode_iq4_nl},
                                             {30, decode_bf16}}};

}  // namespace

const GgmlType* find_ggml_type(uint32_t type) {
  const auto* found = std::find_if(kTypes.begin(), kTypes.end(), [&](const auto& row) { return row.type == type; });
  return found == kTypes.end() ? nullptr : found;
}

bool decode_ggml_blocks(uint32_t type, const std::byte* blocks, int64_t count, float* out) {
  const auto* decoder =
      std::find_if(kDecoders.begin(), kDecoders.end(), [&](const auto& row) { return row.type == type; });
  if (decoder == kDecoders.end()) return false;
  const GgmlType& layout = *find_ggml_type(type);
  const auto* block = reinterpret_cast<const uint8_t*>(blocks);
  for (int64_t done = 0; done < count; done += layout.block_values, block += layout.block_bytes)
    decoder->decode(block, out + done);
  return true;
}

}  // namespace nibble
