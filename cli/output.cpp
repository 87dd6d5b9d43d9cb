// Text, JSON, sizes and progress for people and scripts.
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <chrono>
#include <cmath>
#include <iostream>
#include <iterator>

#include "base/error.h"
#include "base/output.h"
#include "command.h"

namespace nibble::cli {

int report_error(ErrorCode code, const std::string& message) {
  std::string line = message;
  std::replace(line.begin(), line.end(), '\n', ' ');
  std::cout.flush();
  if (isatty(STDERR_FILENO)) std::cerr << "\r\033[K";  // in the place of a progress bar
  std::cerr << "error: " << line << std::endl;
  switch (code) {
    case ErrorCode::invalid_argument:
      return 2;
    case ErrorCode::not_found:
      return 3;
    case ErrorCode::corrupt_file:
    case ErrorCode::unsupported:
      return 4;
    case ErrorCode::out_of_memory:
      return 5;
    case ErrorCode::device:
      return 6;
    case ErrorCode::io:
    case ErrorCode::cancelled:
    case ErrorCode::internal:
      return 1;
  }
  return 1;
}

void print_warning(std::string_view text) { std::cerr << "warning: " << text << '\n'; }
void print_notice(std::string_view text) { std::cerr << text << '\n'; }

void print_json(const Json& object) {
  std::cout << object.dump(-1, ' ', false, Json::error_handler_t::replace) << '\n';
}

Progress progress_bar() {
  if (!isatty(STDERR_FILENO)) return {};
  using Clock = std::chrono::steady_clock;
  struct Bar {
    std::string stage;
    Clock::time_point begin = Clock::now(), drawn{};
  };
  return [bar = std::make_shared<Bar>()](std::string_view stage, uint64_t done, uint64_t total) {
    const auto now = Clock::now();
    if (stage != bar->stage) *bar = {std::string(stage), now, {}};
    const bool is_last = done >= total;
    if (!is_last && now - bar->drawn < std::chrono::milliseconds(80)) return;
    bar->drawn = now;
    const double fraction = total == 0 ? 1.0 : double(done) / double(total);
    const auto filled = static_cast<size_t>(std::lround(fraction * 30));
    const double seconds = std::chrono::duration<double>(now - bar->begin).count();
    std::cerr << fmt::format("\r{:<12} [{}{}] {:3.0f}%  {:.1f} s ", stage, std::string(filled, '#'),
                             std::string(30 - std::min<size_t>(filled, 30), ' '), fraction * 100, seconds);
    if (is_last) std::cerr << "\r\033[K";
    std::cerr.flush();
  };
}

int64_t parse_size(const std::string& text, const std::string& option) {
  static const std::pair<const char*, double> kUnits[] = {
      {"", 1},      {"B", 1},      {"KB", 1e3},        {"MB", 1e6},           {"GB", 1e9},
      {"TB", 1e12}, {"KIB", 1024}, {"MIB", 1048576.0}, {"GIB", 1073741824.0}, {"TIB", 1099511627776.0}};
  size_t used = 0;
  double number = -1;
  try {
    number = std::stod(text, &used);
  } catch (const std::exception&) {
  }
  std::string unit = text.substr(std::min(used, text.size()));
  unit.erase(std::remove_if(unit.begin(), unit.end(), [](unsigned char c) { return std::isspace(c) != 0; }),
             unit.end());
  std::transform(unit.begin(), unit.end(), unit.begin(), [](unsigned char c) { return std::toupper(c); });
  for (const auto& [name, factor] : kUnits)
    if (unit == name && std::isfinite(number) && number >= 0 && number * factor < 9e18)
      return static_cast<int64_t>(number * factor);
  fail(ErrorCode::invalid_argument, "{}: found '{}', expected a size such as 16GiB or 12GB", option, text);
}

std::string human_size(int64_t bytes) {
  const char* units[] = {"B", "KB", "MB", "GB", "TB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  for (; value >= 1000 && unit < 4; ++unit) value /= 1000;
  return unit == 0 ? fmt::format("{} B", bytes) : fmt::format("{:.2f} {}", value, units[unit]);
}

std::string read_text(const std::string& path) { return path == "-" ? read_standard_input() : read_file(path); }

std::string read_standard_input() {
  std::string text{std::istreambuf_iterator<char>(std::cin), {}};
  if (std::cin.bad()) fail(ErrorCode::io, "standard input: cannot read");
  return text;
}

std::vector<std::string> split_list(const std::string& text) {
  std::vector<std::string> items;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    if (end > begin) items.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return items;
}

}  // namespace nibble::cli
