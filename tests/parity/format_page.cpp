// Reading the pages of docs/formats.
#include "format_page.h"

#include <bit>
#include <cmath>
#include <cstdint>
#include <sstream>

#include "base/output.h"

namespace nibble::parity {

std::vector<Example> examples_of(const std::string& page) {
  std::istringstream text(read_file(NIBBLE_SOURCE_DIR "/docs/formats/" + page));
  std::vector<Example> examples;
  bool is_inside = false;
  for (std::string line; std::getline(text, line);) {
    if (line == "```example") {
      examples.emplace_back();
      is_inside = true;
    } else if (line == "```") {
      is_inside = false;
    } else if (is_inside) {
      const size_t colon = line.find(':');
      examples.back()[line.substr(0, colon)] = line.size() > colon + 2 ? line.substr(colon + 2) : "";
    }
  }
  return examples;
}

std::vector<float> numbers(const std::string& text) {
  std::istringstream words(text);
  std::vector<float> result;
  for (std::string word; words >> word;)
    result.push_back(std::stod(word) == 0 && word[0] == '-' ? -0.0f : static_cast<float>(std::stod(word)));
  return result;
}

std::string bits(const std::vector<float>& values) {
  std::string text;
  for (const float value : values) {
    if (!text.empty()) text += ' ';
    text += std::isnan(value) ? "nan" : fmt::format("{:08x}", std::bit_cast<uint32_t>(value));
  }
  return text;
}

std::string hex(const void* data, size_t size) {
  return fmt::format("{:02x}",
                     fmt::join(static_cast<const uint8_t*>(data), static_cast<const uint8_t*>(data) + size, " "));
}

}  // namespace nibble::parity
