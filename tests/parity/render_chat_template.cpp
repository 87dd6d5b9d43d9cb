// Renders chat templates for make_chat_template_goldens.py --compare: a JSON object {"template", "context"} a line in,
// {"ok", "text"} a line out.
#include <iostream>
#include <string>

#include "tokenizer/chat_template.h"

int main() {
  for (std::string line; std::getline(std::cin, line);) {
    nibble::Json answer;
    try {
      const nibble::Json job = nibble::parse_json(line, "standard input");
      answer["text"] = nibble::ChatTemplate(job.at("template").get<std::string>()).render(job.at("context"));
      answer["ok"] = true;
    } catch (const nibble::Error& error) {
      answer["text"] = error.what();
      answer["ok"] = false;
    }
    std::cout << answer.dump(-1, ' ', false, nibble::Json::error_handler_t::replace) << '\n';
  }
}
