// The keys of generation_config.json that nibble honours.
#include "api/generation_config.h"

#include "base/error.h"

namespace nibble::api {
namespace {

template <typename T>
void read(const Json& json, const char* key, std::string_view source, T& target) {
  if (const auto value = find_value<T>(json, key, source)) target = *value;
}

/// One id or a list of ids.
std::vector<int32_t> read_ids(const Json& json, const char* key, std::string_view source) {
  std::vector<int32_t> ids;
  const auto found = find_value<Json>(json, key, source);
  if (!found) return ids;
  const Json list = found->is_array() ? *found : Json::array({*found});
  for (const auto& item : list) {
    if (!item.is_number_integer() || item.get<int64_t>() < 0 || item.get<int64_t>() > INT32_MAX)
      fail(ErrorCode::corrupt_file, "{}: key '{}': found {}, expected token ids", source, key, item.dump());
    ids.push_back(item.get<int32_t>());
  }
  return ids;
}

}  // namespace

GenerationConfig read_generation_config(const ModelSource& source) {
  GenerationConfig result;
  result.eos_token_id = read_ids(source.config, "eos_token_id", source.config_name);
  if (const auto pad = read_ids(source.config, "pad_token_id", source.config_name); !pad.empty())
    result.pad_token_id = pad[0];
  const Json& json = source.generation_config;
  if (!json.is_object()) return result;
  const std::string name = (source.path / "generation_config.json").string();
  read(json, "do_sample", name, result.do_sample);
  read(json, "temperature", name, result.temperature);
  read(json, "top_k", name, result.top_k);
  read(json, "top_p", name, result.top_p);
  read(json, "min_p", name, result.min_p);
  read(json, "repetition_penalty", name, result.repetition_penalty);
  read(json, "num_beams", name, result.num_beams);
  read(json, "length_penalty", name, result.length_penalty);
  if (auto eos = read_ids(json, "eos_token_id", name); !eos.empty()) result.eos_token_id = std::move(eos);
  if (const auto pad = read_ids(json, "pad_token_id", name); !pad.empty()) result.pad_token_id = pad[0];
  return result;
}

}  // namespace nibble::api
