// Chat templates: each construct against what jinja2 in transformers' environment rendered (chat_template.json, made by
// tests/parity/make_chat_template_goldens.py), and what is refused.
#include "tokenizer/chat_template.h"

#include <gtest/gtest.h>

#include <chrono>
#include <fstream>

#include "tokenizer/jinja_ast.h"

namespace nibble {
namespace {

std::string render(std::string_view source, const Json& context = Json::object()) {
  return ChatTemplate(source).render(context);
}

TEST(ChatTemplate, GoldensOfTransformersEnvironment) {
  const Json goldens = read_json(std::string(NIBBLE_TEST_DATA) + "/chat_template.json");
  int compared = 0;
  for (const Json& entry : goldens.at("cases")) {
    const std::string source = entry.at("template");
    const std::string context_name = entry.at("context");
    const Json& context = goldens.at("contexts").at(context_name);
    if (entry.at("fails").get<bool>()) {
      EXPECT_THROW(render(source, context), Error) << source;
    } else {
      std::string rendered;
      EXPECT_NO_THROW(rendered = render(source, context)) << source;
      EXPECT_EQ(rendered, entry.at("rendered").get<std::string>()) << source;
    }
    ++compared;
  }
  EXPECT_GT(compared, 300);
}

ErrorCode code_of(std::string_view source, std::string* message = nullptr) {
  try {
    render(source);
  } catch (const Error& error) {
    if (message != nullptr) *message = error.what();
    return error.code();
  }
  ADD_FAILURE() << "rendered: " << source;
  return ErrorCode::internal;
}

TEST(ChatTemplate, ErrorsNameTheLine) {
  std::string message;
  EXPECT_EQ(code_of("a\nb\n{% if x %}", &message), ErrorCode::corrupt_file);
  EXPECT_NE(message.find("line 3"), std::string::npos) << message;
  EXPECT_EQ(code_of("\n\n{{ 1 + nothing }}", &message), ErrorCode::invalid_argument);
  EXPECT_NE(message.find("line 3"), std::string::npos) << message;
  EXPECT_NE(message.find("'nothing' is undefined"), std::string::npos) << message;
  EXPECT_EQ(code_of("{{ raise_exception('roles must alternate') }}", &message), ErrorCode::invalid_argument);
  EXPECT_NE(message.find("roles must alternate"), std::string::npos) << message;
  EXPECT_EQ(code_of("{% include 'x' %}"), ErrorCode::unsupported);
  EXPECT_EQ(code_of("{{ 1 | nofilter }}"), ErrorCode::unsupported);
  EXPECT_EQ(code_of("{{ 1 is notest }}"), ErrorCode::unsupported);
}

TEST(ChatTemplate, LimitsStopHostileTemplates) {
  for (const std::string source : {
           "{% set ns = namespace(x='aaaaaaaaaa') %}{% for i in range(100) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
           "{% set ns = namespace(x=[1]) %}{% for i in range(100) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x "
           "}}",
           "{% set ns = namespace(x=[1]) %}{% for i in range(100000) %}{% set ns.x = [ns.x] %}{% endfor %}",
           "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
           "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
           "{{ range(1000000) }}",
           "{{ 'a' * 10000000000 }}",
           "{{ '%1000000000d' % 1 }}",
           "{{ 'a'.ljust(10000000000) }}",
           "{{ 'a'.ljust(4611686018427387905) }}",
           "{{ 9223372036854775807 + 1 }}",
           "{{ 10 ** 100 }}",
       }) {
    const jinja::Body body = jinja::parse_template(source);
    try {
      jinja::render_template(body, Json::object(), {.steps = 1'000'000, .bytes = 32 << 20});
      ADD_FAILURE() << source;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::invalid_argument) << source << error.what();
    }
  }
  const std::string open(100000, '('), close(100000, ')');
  EXPECT_EQ(code_of("{{ " + open + "1" + close + " }}"), ErrorCode::unsupported);
  std::string chain = "{{ 1";
  for (int i = 0; i < 10000; ++i) chain += "+1";
  EXPECT_EQ(code_of(chain + " }}"), ErrorCode::unsupported);
}

// Each of these took quadratic time in a megabyte, which no step was charged for: minutes instead of milliseconds.
TEST(ChatTemplate, TextOperationsTakeLinearTime) {
  const std::string sets =
      "{% set a = 'a' * 1000000 %}{% set b = 'b' + 'a' * 500000 %}{% set c = 'b' * 500000 + 'c' %}";
  const auto started = std::chrono::steady_clock::now();
  EXPECT_EQ(render(sets + "{{ a.rfind(b) }} {{ a.rsplit(b) | length }} {{ a.rpartition(b)[0] }}"), "-1 1 ");
  EXPECT_EQ(render(sets + "{{ a.strip(c) | length }} {{ ('c' + a).strip(c) | length }}"), "1000000 1000000");
  EXPECT_EQ(render("{{ ('1_' * 1000000 + '1') | int(7) }}"), "7");
  EXPECT_LT(std::chrono::steady_clock::now() - started, std::chrono::seconds(20));
}

TEST(ChatTemplate, LookUpsInManyVariablesAreCharged) {
  std::string source;
  for (int i = 0; i < 5000; ++i) source += "{% set v" + std::to_string(i) + " = 1 %}";
  const jinja::Body body = jinja::parse_template(source + "{% for i in range(50000) %}{{ v4999 }}{% endfor %}");
  EXPECT_THROW(jinja::render_template(body, Json::object(), {.steps = 5'000'000}), Error);
}

// What takes microseconds costs steps: each of these rendered a thousand times for a few thousand.
TEST(ChatTemplate, SlowOperationsAreCharged) {
  const std::string text = "{% set s = 'aB c' * 1000 %}";
  for (const std::string operation :
       {"'%.400f' % 1e308", "'%.400e' % 1e308", "'%f' % 1e308", "'%400.2f' % 1e308", "1e308 | round(300)",
        "strftime_now('%c')", "strftime_now('%c' * 400)", "s | title", "s | int", "s.split()", "s.rsplit(' ')",
        "s | wordcount", "s | upper", "s.isalpha()", "s == s + 'x'", "'y' in s"}) {
    const jinja::Body body =
        jinja::parse_template(text + "{% for i in range(1000) %}{% set x = " + operation + " %}{% endfor %}");
    EXPECT_THROW(jinja::render_template(body, Json::object(), {.steps = 100'000}), Error) << operation;
  }
}

TEST(ChatTemplate, RightSidedSearchesMatchPython) {
  EXPECT_EQ(render("{{ 'aaa'.rsplit('aa') }} {{ 'a--b--c'.rsplit('--', 1) }} {{ '--'.rsplit('--') }}"),
            "['a', ''] ['a--b', 'c'] ['', '']");
  EXPECT_EQ(render("{{ 'abab'.rfind('ab') }} {{ 'abab'.rfind('') }} {{ 'a'.rfind('ab') }} {{ 'abab'.rindex('ba') }}"),
            "2 4 -1 1");
  EXPECT_EQ(render("{{ 'a.b.c'.rpartition('.') }} {{ 'xyax'.strip('yx') }} {{ '1_000'|int }} {{ '1__0'|int(-1) }}"),
            "('a.b', '.', 'c') a 1000 -1");
  EXPECT_EQ(render("{{ 'a'.ljust(-9223372036854775807 - 1) }}{{ 'a'.center(4) }}|{{ 'ab'.center(5) }}|"),
            "a a  |  ab |");
}

TEST(ChatTemplate, NamespacesMayHoldThemselves) {
  EXPECT_EQ(render("{% set a = namespace() %}{% set b = namespace(a=a) %}{% set a.b = b %}{% set a.c = [a] %}{{ "
                   "a.b.a.b.a is defined }}"),
            "True");
  EXPECT_EQ(render("{% set ns = namespace() %}{% for i in [1, 2] %}{% set ns.l = loop %}{{ loop.changed(loop) }}{% "
                   "endfor %}{{ ns.l.index }}"),
            "TrueFalse2");
}

TEST(ChatTemplate, TimeIsNow) {
  const std::string year = render("{{ strftime_now('%Y-%m-%d') }}");
  ASSERT_EQ(year.size(), 10u);
  EXPECT_GE(std::stoi(year.substr(0, 4)), 2025);
}

TEST(ChatTemplate, BytesThatAreNoUtf8PassThrough) {
  const Json context = {{"text", "a\xff\xfe z"}};
  EXPECT_EQ(render("{{ text }}|{{ text[1:2] }}|{{ text | length }}|{{ text | upper }}", context),
            "a\xff\xfe z|\xff|5|A\xff\xfe Z");
}

}  // namespace
}  // namespace nibble
