// Values as text: str(), repr(), json.dumps() and the % operator.
#include <algorithm>
#include <cmath>

#include "tokenizer/jinja_operators.h"
#include "tokenizer/python_text.h"

namespace nibble::jinja {
namespace {

void append_items(Runtime& runtime, const std::vector<Value>& items, std::string& out) {
  for (size_t i = 0; i < items.size(); ++i) {
    if (i > 0) out += ", ";
    append_repr(runtime, items[i], out);
  }
}

void append_dict(Runtime& runtime, const Value& value, std::string& out) {
  out += '{';
  bool is_first = true;
  for (const auto& [key, item] : value.entries()) {
    if (!is_first) out += ", ";
    is_first = false;
    append_repr(runtime, key, out);
    out += ": ";
    append_repr(runtime, item, out);
  }
  out += '}';
}

}  // namespace

void append_repr(Runtime& runtime, const Value& value, std::string& out) {
  const size_t before = out.size();
  runtime.charge_steps(1);
  switch (value.kind()) {
    case Kind::undefined:
      out += "Undefined";
      break;
    case Kind::none:
      out += "None";
      break;
    case Kind::boolean:
      out += value.integer() != 0 ? "True" : "False";
      break;
    case Kind::integer:
      out += std::to_string(value.integer());
      break;
    case Kind::real:
      out += python_text::repr(value.real());
      break;
    case Kind::text:
      out += python_text::repr(value.text());
      runtime.charge_bytes(out.size() - before);
      break;
    case Kind::list:
      out += '[';
      append_items(runtime, value.items(), out);
      out += ']';
      break;
    case Kind::tuple:
      out += '(';
      append_items(runtime, value.items(), out);
      out += value.items().size() == 1 ? ",)" : ")";
      break;
    case Kind::dict:
      append_dict(runtime, value, out);
      break;
    default:
      out += fmt::format("<{}>", type_name(value));
  }
}

std::string to_text(Runtime& runtime, const Value& value) {
  if (value.is(Kind::text)) {
    runtime.charge_bytes(value.text().size());
    return value.text();
  }
  std::string out;
  if (!value.is(Kind::undefined)) append_repr(runtime, value, out);
  return out;
}

namespace {

class JsonWriter {
 public:
  JsonWriter(Runtime& runtime, const JsonStyle& style) : runtime_(runtime), style_(style) {}

  void write(const Value& value, int level) {
    runtime_.charge_steps(1);
    switch (value.kind()) {
      case Kind::none:
        out_ += "null";
        break;
      case Kind::boolean:
        out_ += value.integer() != 0 ? "true" : "false";
        break;
      case Kind::integer:
        out_ += std::to_string(value.integer());
        break;
      case Kind::real:
        write_real(value.real());
        break;
      case Kind::text:
        write_text(value.text());
        break;
      case Kind::list:
      case Kind::tuple:
        write_list(value.items(), level);
        break;
      case Kind::dict:
        write_dict(value, level);
        break;
      default:
        require_defined(runtime_, value);
        runtime_.fail_type("tojson: {} is not JSON", type_name(value));
    }
  }

  std::string take() { return std::move(out_); }

 private:
  void write_real(double value) {
    if (std::isnan(value)) {
      out_ += "NaN";
    } else if (std::isinf(value)) {
      out_ += value < 0 ? "-Infinity" : "Infinity";
    } else {
      out_ += python_text::repr(value);
    }
  }

  void write_escaped(char32_t code) {
    if (code > 0xFFFF) {
      out_ += fmt::format("\\u{:04x}\\u{:04x}", 0xD800 + ((static_cast<uint32_t>(code) - 0x10000) >> 10),
                          0xDC00 + ((static_cast<uint32_t>(code) - 0x10000) & 0x3FF));
    } else {
      out_ += fmt::format("\\u{:04x}", static_cast<uint32_t>(code));
    }
  }

  /// Also a byte of a longer character.
  void write_ascii(char c) {
    switch (c) {
      case '"':
        out_ += "\\\"";
        break;
      case '\\':
        out_ += "\\\\";
        break;
      case '\n':
        out_ += "\\n";
        break;
      case '\r':
        out_ += "\\r";
        break;
      case '\t':
        out_ += "\\t";
        break;
      case '\b':
        out_ += "\\b";
        break;
      case '\f':
        out_ += "\\f";
        break;
      default:
        static_cast<unsigned char>(c) < 0x20 ? write_escaped(static_cast<char32_t>(c)) : out_.push_back(c);
    }
  }

  void write_text(std::string_view text) {
    runtime_.charge_bytes(text.size());
    out_ += '"';
    if (style_.ensure_ascii) {
      for (const char32_t code : python_text::decode(text)) {
        code < 0x80 ? write_ascii(static_cast<char>(code)) : write_escaped(code);
      }
    } else {
      for (const char c : text) write_ascii(c);
    }
    out_ += '"';
  }

  void write_separator(const std::string& separator) {
    runtime_.charge_bytes(separator.size());
    out_ += separator;
  }

  void break_line(int level) {
    if (!style_.indent) return;
    runtime_.charge_bytes(style_.indent->size() * static_cast<size_t>(level) + 1);
    out_ += '\n';
    for (int i = 0; i < level; ++i) out_ += *style_.indent;
  }

  void write_list(const std::vector<Value>& items, int level) {
    out_ += '[';
    for (size_t i = 0; i < items.size(); ++i) {
      if (i > 0) write_separator(style_.item_separator);
      break_line(level + 1);
      write(items[i], level + 1);
    }
    if (!items.empty()) break_line(level);
    out_ += ']';
  }

  void write_key(const Value& key) {
    if (key.is(Kind::text)) return write_text(key.text());
    if (!key.is_number() && !key.is(Kind::none)) runtime_.fail_type("tojson: a key is {}", type_name(key));
    out_ += '"';
    write(key, 0);
    out_ += '"';
  }

  void write_dict(const Value& value, int level) {
    std::vector<const std::pair<Value, Value>*> entries;
    for (const auto& entry : value.entries()) entries.push_back(&entry);
    if (style_.sort_keys) {
      std::stable_sort(entries.begin(), entries.end(), [&](const auto* a, const auto* b) {
        return order_of(runtime_, a->first, b->first, "<").value_or(0) < 0;
      });
    }
    out_ += '{';
    for (size_t i = 0; i < entries.size(); ++i) {
      if (i > 0) write_separator(style_.item_separator);
      break_line(level + 1);
      write_key(entries[i]->first);
      write_separator(style_.key_separator);
      write(entries[i]->second, level + 1);
    }
    if (!entries.empty()) break_line(level);
    out_ += '}';
  }

  Runtime& runtime_;
  const JsonStyle& style_;
  std::string out_;
};

}  // namespace

std::string to_json(Runtime& runtime, const Value& value, const JsonStyle& style) {
  JsonWriter writer(runtime, style);
  writer.write(value, 0);
  return writer.take();
}

}  // namespace nibble::jinja
