// Ids of every line of standard input, for the comparison with the real tokenizers (compare_tokenizers.py).
#include <chrono>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>

#include "nibble/types.h"
#include "tokenizer/incremental_decoder.h"
#include "tokenizer/tokenizer.h"

namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// A line may hold any byte: backslash, newline and carriage return arrive as \\ \n \r.
std::string unescape(const std::string& line) {
  std::string text;
  for (size_t i = 0; i < line.size(); ++i) {
    if (line[i] != '\\' || i + 1 == line.size()) {
      text += line[i];
      continue;
    }
    const char c = line[++i];
    text += c == 'n' ? '\n' : c == 'r' ? '\r' : c;
  }
  return text;
}

std::string escape(const std::string& text) {
  std::string line;
  for (const char c : text) {
    if (c == '\n')
      line += "\\n";
    else if (c == '\r')
      line += "\\r";
    else if (c == '\\')
      line += "\\\\";
    else
      line += c;
  }
  return line;
}

int run(const std::string& path, const std::string& mode) {
  auto start = std::chrono::steady_clock::now();
  const auto tokenizer = nibble::Tokenizer::load(path);
  const double load_seconds = seconds_since(start);
  const std::string input{std::istreambuf_iterator<char>(std::cin), {}};
  const nibble::EncodeOptions options{.add_special_tokens = mode != "--plain"};
  if (mode == "--speed") {
    start = std::chrono::steady_clock::now();
    const auto ids = tokenizer->encode(input, options);
    const double seconds = seconds_since(start);
    std::printf("load %.1f ms, %.2f MB/s, %zu ids\n", load_seconds * 1e3,
                static_cast<double>(input.size()) / seconds / 1e6, ids.size());
    return 0;
  }
  std::string out;
  for (size_t at = 0; at < input.size();) {
    const size_t end = std::min(input.find('\n', at), input.size());
    const auto ids = tokenizer->encode(unescape(input.substr(at, end - at)), options);
    at = end + 1;
    if (mode == "--text") {  // decoded again, whole; and token by token, which must agree
      const std::string whole = tokenizer->decode(ids, {});
      nibble::IncrementalDecoder decoder(*tokenizer, {});
      std::string joined;
      for (const int32_t id : ids) joined += decoder.push(id);
      joined += decoder.finish();
      out += joined == whole ? escape(whole) : "INCREMENTAL " + escape(joined);
    } else {
      for (size_t i = 0; i < ids.size(); ++i) out += (i > 0 ? " " : "") + std::to_string(ids[i]);
    }
    out += '\n';
  }
  std::cout << out;
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: tokenize_lines TOKENIZER [--plain | --text | --speed]\n");
    return 2;
  }
  try {
    return run(argv[1], argc > 2 ? argv[2] : "");
  } catch (const nibble::Error& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
