// The words every layer shares: element types, errors, progress and cancellation.
#pragma once

#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <string_view>

namespace nibble {

/// Element type of a tensor. Names follow the field: `bf16` is torch.bfloat16.
enum class DType : uint8_t { f64, f32, f16, bf16, i64, i32, i16, i8, u8, boolean };

/// Bytes of one element.
int64_t size_of(DType dtype);

/// Name as in torch without the prefix: "float32", "bfloat16", "uint8".
std::string_view name_of(DType dtype);

/// The inverse of name_of; accepts a leading "torch.". Throws invalid_argument for any other text.
DType dtype_from_name(std::string_view name);

/// What went wrong, for programs; the message says it to people.
enum class ErrorCode : uint8_t {
  invalid_argument,
  not_found,
  unsupported,
  out_of_memory,
  io,
  corrupt_file,
  device,
  cancelled,
  internal,
};

/// The only exception that nibble throws. what() names the file or option, what was found and what was expected.
class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const noexcept { return code_; }

 private:
  ErrorCode code_;
};

/// Called from the working thread with a stage ("quantizing") and how much of it is done, in bytes or items.
using Progress = std::function<void(std::string_view stage, uint64_t done, uint64_t total)>;

/// Asks every running call to stop at its next safe point with Error{cancelled}. Safe in a signal handler.
void request_cancel() noexcept;

/// Forgets a request, so that the process can go on.
void reset_cancel() noexcept;

}  // namespace nibble
