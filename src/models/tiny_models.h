// For tests: the tiny random models of tests/data/models, which tests/parity/make_model_goldens.py made.
#pragma once

#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

namespace nibble::models::testing {

/// Names of the models that have `file`, in alphabetic order.
inline std::vector<std::string> tiny_models(const std::string& file) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(std::filesystem::path(NIBBLE_TEST_DATA) / "models"))
    if (std::filesystem::exists(entry.path() / file)) names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

/// The decoders; encoder-decoders have goldens of their own, seq2seq.safetensors.
inline std::vector<std::string> causal_models() {
  std::vector<std::string> names = tiny_models("expected.json");
  std::erase_if(names, [](const std::string& name) {
    return !std::filesystem::exists(std::filesystem::path(NIBBLE_TEST_DATA) / "models" / name / "goldens.safetensors");
  });
  return names;
}

/// A name that GoogleTest accepts.
inline std::string test_name(std::string model) {
  std::replace(model.begin(), model.end(), '-', '_');
  return model;
}

}  // namespace nibble::models::testing
