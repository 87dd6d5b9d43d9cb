// One function per kind of line; errors name the line.
#include "train/dataset.h"

#include <algorithm>

#include "base/error.h"
#include "base/json.h"
#include "base/output.h"

namespace nibble {

int64_t Dataset::token_count() const {
  int64_t count = 0;
  for (const Sample& sample : samples) count += static_cast<int64_t>(sample.ids.size() + sample.source.size());
  return count;
}

namespace train {
namespace {

using Sample = Dataset::Sample;

void append(Sample& sample, const std::vector<int32_t>& ids, bool is_target) {
  sample.ids.insert(sample.ids.end(), ids.begin(), ids.end());
  sample.is_target.insert(sample.is_target.end(), ids.size(), is_target);
}

void append_eos(Sample& sample, const TextEncoder& encoder) {
  if (encoder.eos && (sample.ids.empty() || sample.ids.back() != *encoder.eos)) append(sample, {*encoder.eos}, true);
}

Sample text_sample(const Json& line, std::string_view source, const TextEncoder& encoder) {
  Sample sample;
  append(sample, encoder.encode(get_value<std::string>(line, "text", source), true), true);
  append_eos(sample, encoder);
  return sample;
}

Sample completion_sample(const Json& line, std::string_view source, const TextEncoder& encoder,
                         bool is_completion_only) {
  const auto prompt = get_value<std::string>(line, "prompt", source);
  const auto completion = get_value<std::string>(line, "completion", source);
  Sample sample;
  append(sample, encoder.encode(prompt, true), !is_completion_only);
  append(sample, encoder.encode(completion, false), true);
  append_eos(sample, encoder);
  return sample;
}

/// A source and a target, each with an end.
Sample pair_sample(const Json& line, std::string_view source, const TextEncoder& encoder, int32_t start) {
  Sample sample;
  sample.source = encoder.encode(get_value<std::string>(line, "prompt", source), true);
  if (encoder.eos && (sample.source.empty() || sample.source.back() != *encoder.eos))
    sample.source.push_back(*encoder.eos);
  append(sample, {start}, false);
  append(sample, encoder.encode(get_value<std::string>(line, "completion", source), false), true);
  append_eos(sample, encoder);
  return sample;
}

std::vector<ChatMessage> read_messages(const Json& line, const char* key, std::string_view source) {
  const auto list = line.find(key);
  if (list == line.end() || !list->is_array() || list->empty())
    fail(ErrorCode::corrupt_file, "{}: key '{}': expected a list of objects with role and content", source, key);
  std::vector<ChatMessage> messages;
  for (const Json& message : *list) {
    if (!message.is_object())
      fail(ErrorCode::corrupt_file, "{}: key '{}': expected objects with role and content", source, key);
    messages.push_back(
        {get_value<std::string>(message, "role", source), get_value<std::string>(message, "content", source)});
  }
  return messages;
}

std::string render(const TextEncoder& encoder, std::span<const ChatMessage> messages, bool add_generation_prompt,
                   std::string_view source) {
  try {
    return encoder.render(messages, add_generation_prompt);
  } catch (const Error& error) {  // such as a template that raises, because of these messages
    fail(error.code(), "{}: {}", source, error.what());
  }
}

[[noreturn]] void fail_not_by_turns(std::string_view source) {
  fail(ErrorCode::unsupported,
       "{}: the chat template does not write a conversation turn by turn: completion_only_loss cannot tell the "
       "assistant's tokens",
       source);
}

/// A conversation whose end is the completion: all that follows the prompt for it.
Sample chat_completion_sample(const Json& line, std::string_view source, const TextEncoder& encoder,
                              bool is_completion_only) {
  std::vector<ChatMessage> messages = read_messages(line, "prompt", source);
  const std::string prompt = render(encoder, messages, true, source);
  for (ChatMessage& message : read_messages(line, "completion", source)) messages.push_back(std::move(message));
  const std::string text = render(encoder, messages, false, source);
  if (!text.starts_with(prompt)) fail_not_by_turns(source);
  Sample sample;
  append(sample, encoder.encode(prompt, false), !is_completion_only);
  append(sample, encoder.encode(std::string_view(text).substr(prompt.size()), false), true);
  return sample;
}

/// The tokens of a conversation; an assistant's turn is what its prefix grows by beyond the prompt for it.
Sample chat_sample(const Json& line, std::string_view source, const TextEncoder& encoder, bool is_completion_only) {
  const std::vector<ChatMessage> messages = read_messages(line, "messages", source);
  const std::string text = render(encoder, messages, false, source);
  Sample sample;
  if (!is_completion_only) {
    append(sample, encoder.encode(text, false), true);
    return sample;
  }
  size_t done = 0;  // bytes of `text` that are tokens already
  const auto append_up_to = [&](size_t end, bool is_target) {
    if (end > done) append(sample, encoder.encode(std::string_view(text).substr(done, end - done), false), is_target);
    done = std::max(done, end);
  };
  for (size_t i = 0; i < messages.size(); ++i) {
    if (messages[i].role != "assistant") continue;
    const std::string before = render(encoder, std::span(messages).first(i), true, source),
                      after = render(encoder, std::span(messages).first(i + 1), false, source);
    if (!text.starts_with(before) || !text.starts_with(after)) fail_not_by_turns(source);
    append_up_to(before.size(), false);
    append_up_to(after.size(), true);
  }
  append_up_to(text.size(), false);
  return sample;
}

Sample parse_sample(const Json& line, std::string_view source, const TextEncoder& encoder,
                    const DatasetOptions& options) {
  if (!line.is_object())
    fail(ErrorCode::corrupt_file, "{}: found {}, expected a JSON object", source, line.type_name());
  if (options.decoder_start_token_id) return pair_sample(line, source, encoder, *options.decoder_start_token_id);
  if (line.contains("messages"))
    return chat_sample(line, source, encoder, options.completion_only_loss.value_or(false));
  const bool is_completion_only = options.completion_only_loss.value_or(true);
  if (const auto prompt = line.find("prompt"); prompt != line.end() && prompt->is_array())
    return chat_completion_sample(line, source, encoder, is_completion_only);
  if (line.contains("prompt") || line.contains("completion"))
    return completion_sample(line, source, encoder, is_completion_only);
  if (line.contains("text")) return text_sample(line, source, encoder);
  fail(ErrorCode::corrupt_file, "{}: expected the key 'text', 'messages', or 'prompt' and 'completion'", source);
}

}  // namespace

Dataset read_jsonl(const std::filesystem::path& path, const TextEncoder& encoder, const DatasetOptions& options) {
  require(options.max_length >= 2, "max_length: found {}, expected at least 2", options.max_length);
  const std::string text = read_file(path);
  Dataset dataset;
  int64_t number = 0;
  for (size_t begin = 0; begin < text.size();) {
    size_t end = text.find('\n', begin);
    if (end == std::string::npos) end = text.size();
    const std::string_view line = std::string_view(text).substr(begin, end - begin);
    begin = end + 1;
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string source = fmt::format("{}, line {}", path.string(), number);
    Sample sample = parse_sample(parse_json(line, source), source, encoder, options);
    const auto limit = static_cast<size_t>(options.max_length);
    const bool is_long = std::max(sample.ids.size(), sample.source.size()) > limit;
    if (is_long && !options.drop_long) {
      sample.ids.resize(std::min(limit, sample.ids.size()));
      sample.is_target.resize(sample.ids.size());
      if (sample.source.size() > limit) {  // its end stays, as where a tokenizer cuts
        sample.source.resize(limit);
        if (encoder.eos) sample.source.back() = *encoder.eos;
      }
      ++dataset.shortened;
    }
    if (!sample.is_target.empty()) sample.is_target[0] = false;
    const bool has_target = std::find(sample.is_target.begin(), sample.is_target.end(), true) != sample.is_target.end();
    if (!has_target || (is_long && options.drop_long))
      ++dataset.dropped;
    else
      dataset.samples.push_back(std::move(sample));
  }
  require(!dataset.samples.empty(), "{}: no sample with a token to predict: {} lines, {} dropped", path.string(),
          number, dataset.dropped);
  return dataset;
}

std::vector<std::vector<size_t>> pack(const Dataset& dataset, std::span<const size_t> order, int64_t length) {
  std::vector<std::vector<size_t>> rows;
  std::vector<int64_t> room;
  size_t first_open = 0;  // rows before it are full
  for (const size_t index : order) {
    const auto size = static_cast<int64_t>(dataset.samples[index].ids.size());
    size_t row = first_open;
    while (row < rows.size() && room[row] < size) ++row;
    if (row == rows.size()) {
      rows.emplace_back();
      room.push_back(length);
    }
    rows[row].push_back(index);
    room[row] -= size;
    while (first_open < rows.size() && room[first_open] <= 0) ++first_open;
  }
  return rows;
}

}  // namespace train
}  // namespace nibble
