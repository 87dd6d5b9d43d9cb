// Post-processors of tokenizer.json; only what they do to a single text.
#include "tokenizer/post_processor.h"

#include <algorithm>
#include <string>
#include <utility>

#include "tokenizer/vocabulary.h"

namespace nibble {

namespace {

int32_t checked_id(int64_t id, std::string_view source) {
  if (id < 0 || id > kMaxTokenId)
    fail(ErrorCode::corrupt_file, "{}: post_processor: token id {} is out of range", source, id);
  return static_cast<int32_t>(id);
}

/// The id in a ["token", id] pair.
int32_t pair_id(const Json& json, std::string_view key, std::string_view source) {
  const Json pair = get_value<Json>(json, key, source);
  if (!pair.is_array() || pair.size() != 2 || !pair[1].is_number_integer()) {
    fail(ErrorCode::corrupt_file, "{}: post_processor: '{}' is not a pair of token and id", source, key);
  }
  return checked_id(pair[1].get<int64_t>(), source);
}

}  // namespace

PostProcessor::PostProcessor(const Json& description, std::string_view source) {
  if (!description.is_null()) add(description, source, 0);
}

PostProcessor::PostProcessor(std::vector<int32_t> before, std::vector<int32_t> after) {
  templates_.push_back({{false, std::move(before)}, {true, {}}, {false, std::move(after)}});
}

void PostProcessor::add(const Json& json, std::string_view source, int depth) {
  const auto type = get_value<std::string>(json, "type", source);
  if (type == "Sequence" && depth < 10) {
    for (const Json& step : get_value<Json>(json, "processors", source)) add(step, source, depth + 1);
  } else if (type == "TemplateProcessing") {
    add_template(json, source);
  } else if (type == "BertProcessing" || type == "RobertaProcessing") {
    templates_.push_back(
        {{false, {pair_id(json, "cls", source)}}, {true, {}}, {false, {pair_id(json, "sep", source)}}});
  } else if (type != "ByteLevel") {  // ByteLevel only moves offsets
    fail(ErrorCode::unsupported, "{}: post_processor '{}' is not supported", source, type);
  }
}

void PostProcessor::add_template(const Json& json, std::string_view source) {
  Template items;
  const Json specials = get_value<Json>(json, "special_tokens", source);
  for (const Json& item : get_value<Json>(json, "single", source)) {
    if (const auto sequence = find_value<Json>(item, "Sequence", source)) {
      const auto id = get_value<std::string>(*sequence, "id", source);
      if (id != "A")
        fail(ErrorCode::corrupt_file, "{}: post_processor: sequence '{}' in the template of one text", source, id);
      items.push_back({true, {}});
      continue;
    }
    const auto name = get_value<std::string>(get_value<Json>(item, "SpecialToken", source), "id", source);
    const Json ids = get_value<Json>(get_value<Json>(specials, name, source), "ids", source);
    Item special{false, {}};
    for (const Json& id : ids) {
      if (!id.is_number_integer())
        fail(ErrorCode::corrupt_file, "{}: post_processor: an id of '{}' is no integer", source, name);
      special.ids.push_back(checked_id(id.get<int64_t>(), source));
    }
    items.push_back(std::move(special));
  }
  if (std::count_if(items.begin(), items.end(), [](const Item& item) { return item.is_text; }) > 1) {
    fail(ErrorCode::unsupported, "{}: post_processor: a template with the text more than once is not supported",
         source);
  }
  templates_.push_back(std::move(items));
}

std::vector<int32_t> PostProcessor::apply(std::vector<int32_t> ids, bool add_special_tokens) const {
  for (const Template& items : templates_) {
    std::vector<int32_t> result;
    for (const Item& item : items) {
      if (item.is_text)
        result.insert(result.end(), ids.begin(), ids.end());
      else if (add_special_tokens)
        result.insert(result.end(), item.ids.begin(), item.ids.end());
    }
    ids.swap(result);
  }
  return ids;
}

}  // namespace nibble
