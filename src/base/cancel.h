// Cooperative cancellation: long loops call throw_if_cancelled at points where nothing is half done.
#pragma once

namespace nibble {

bool is_cancelled() noexcept;

/// Throws Error{cancelled} after request_cancel().
void throw_if_cancelled();

}  // namespace nibble
