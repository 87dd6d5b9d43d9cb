// Python's str on UTF-8: positions count code points, white space and case are Unicode's.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace nibble::python_text {

/// Bytes that are no UTF-8 become U+DC80 + byte - 0x80 and turn back into that byte.
std::u32string decode(std::string_view text);
void append_utf8(char32_t code_point, std::string& out);
std::string encode(std::u32string_view code_points);
int64_t length(std::string_view text);
/// Code points [start, stop) with 0 <= start <= stop <= length.
std::string_view slice(std::string_view text, int64_t start, int64_t stop);

bool is_space(char32_t code_point);
bool is_alpha(char32_t code_point);
bool is_digit(char32_t code_point);
bool is_upper(char32_t code_point);
bool is_lower(char32_t code_point);

std::string upper(std::string_view text);
std::string lower(std::string_view text);
std::string title(std::string_view text);
std::string capitalize(std::string_view text);

/// nullopt: white space.
std::string_view strip(std::string_view text, std::optional<std::string_view> characters, bool left, bool right);
/// nullopt separator: runs of white space. Negative limit: no limit. A separator must not be empty.
std::vector<std::string_view> split(std::string_view text, std::optional<std::string_view> separator, int64_t limit);
std::vector<std::string_view> rsplit(std::string_view text, std::optional<std::string_view> separator, int64_t limit);
std::vector<std::string_view> split_lines(std::string_view text, bool keep_ends);
/// Negative limit: all.
std::string replace(std::string_view text, std::string_view from, std::string_view to, int64_t limit);
/// Byte position in linear time, npos if absent.
size_t find(std::string_view text, std::string_view part, size_t from = 0);
/// The last one, in linear time.
size_t rfind(std::string_view text, std::string_view part);

std::string repr(std::string_view text);
/// repr(float): the shortest digits that read back the same.
std::string repr(double value);

}  // namespace nibble::python_text
