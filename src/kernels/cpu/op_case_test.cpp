// The runner of OpCase.
#include "kernels/cpu/op_case.h"

namespace nibble::kernels::cpu::testing {

void Buffer::set(int64_t i, float value) {
  switch (dtype_) {
    case DType::bf16:
      as<bf16_t>()[i] = to_bf16(value);
      break;
    case DType::f16:
      as<f16_t>()[i] = to_f16(value);
      break;
    case DType::f32:
      as<float>()[i] = value;
      break;
    default:
      as<uint8_t>()[i] = static_cast<uint8_t>(value);
  }
}

float Buffer::get(int64_t i) const {
  switch (dtype_) {
    case DType::bf16:
      return to_float(as<bf16_t>()[i]);
    case DType::f16:
      return to_float(as<f16_t>()[i]);
    case DType::f32:
      return as<float>()[i];
    default:
      return as<uint8_t>()[i];
  }
}

int64_t Buffer::offset() const {
  const int64_t guard = kGuard * size_of(dtype_);
  if (placement_ == Placement::misaligned) return guard;
  const auto start = static_cast<int64_t>(reinterpret_cast<uintptr_t>(bytes_.data()) % 64);
  return (start + guard + 63) / 64 * 64 - start;
}

bool Buffer::guards_are_whole() const {
  const int64_t begin = offset(), end = begin + count_ * size_of(dtype_);
  for (int64_t i = 0; i < static_cast<int64_t>(bytes_.size()); ++i)
    if ((i < begin || i >= end) && bytes_[static_cast<size_t>(i)] != kPoison) return false;
  return true;
}

Buffer random_buffer(Random& random, DType dtype, int64_t count, float scale) {
  Buffer buffer(dtype, count);
  for (int64_t i = 0; i < count; ++i) buffer.set(i, static_cast<float>(random.normal()) * scale);
  return buffer;
}

namespace {

bool agree(float expected, float found, double tolerance) {
  if (std::isnan(expected) || std::isnan(found)) return std::isnan(expected) && std::isnan(found);
  if (std::isinf(expected) || std::isinf(found)) return expected == found;
  return std::abs(double{expected} - double{found}) <= tolerance * std::max(1.0, std::abs(double{expected}));
}

bool is_float(DType dtype) { return dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16; }

/// NaN of any payload equals NaN; everything else must be the same bits.
bool same_value(const Buffer& expected, const Buffer& found, int64_t i) {
  const auto size = static_cast<size_t>(size_of(expected.dtype()));
  if (std::memcmp(expected.as<char>() + i * int64_t(size), found.as<char>() + i * int64_t(size), size) == 0)
    return true;
  return is_float(expected.dtype()) && std::isnan(expected.get(i)) && std::isnan(found.get(i));
}

void compare(const Outputs& expected, const Outputs& found, double tolerance, const std::string& label) {
  ASSERT_EQ(expected.size(), found.size());
  for (size_t o = 0; o < expected.size(); ++o) {
    EXPECT_TRUE(found[o].guards_are_whole()) << label << ": wrote outside output " << o;
    for (int64_t i = 0; i < expected[o].count(); ++i) {
      const bool good = tolerance == 0 || !is_float(expected[o].dtype())
                            ? same_value(expected[o], found[o], i)
                            : agree(expected[o].get(i), found[o].get(i), tolerance);
      ASSERT_TRUE(good) << label << ": output " << o << " [" << i << "] is " << found[o].get(i) << ", expected "
                        << expected[o].get(i);
    }
  }
}

}  // namespace

void check(const OpCase& op) {
  static ThreadPool two(2), three(3);
  const Outputs expected = op.run(reference::table(), {});
  for (const auto& isa : isas()) {
    if (!isa.is_supported) continue;
    const std::string label = op.name + " on " + isa.name;
    const Outputs found = op.run(*isa.table, {});
    compare(expected, found, op.tolerance, label);
    for (ThreadPool* pool : {&two, &three}) {
      const Outputs again = op.run(*isa.table, {pool});
      for (size_t o = 0; o < found.size(); ++o)
        EXPECT_TRUE(found[o].same_bits(again[o])) << label << ": output " << o << " depends on the thread count";
    }
    if (::testing::Test::HasFailure()) return;
  }
}

}  // namespace nibble::kernels::cpu::testing
