// Chat templates: each construct against what jinja2 in transformers' environment rendered (chat_template.json, made by
// tests/parity/make_chat_template_goldens.py), and what is refused.
#include "tokenizer/chat_template.h"

#include <gtest/gtest.h>

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
