// Runs every tiny model of tests/data/models and prints a Markdown table: an architecture, its file, its errors.
//
//     architecture_table REPOSITORY > docs/results/architectures.md
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <regex>

#include "models/decoder.h"
#include "models/tiny_models.h"
#include "runtime/session.h"

namespace {

using namespace nibble;
namespace fs = std::filesystem;

/// From the lines of registry.cpp: an architecture and the function, and file, that builds it.
std::map<std::string, std::string> files_of_architectures(const fs::path& repository) {
  std::ifstream in(repository / "src/models/registry.cpp");
  const std::string text{std::istreambuf_iterator<char>(in), {}};
  const std::regex entry(R"re(Architecture\{"(\w+)",\s*(\w+))re");
  std::map<std::string, std::string> files;
  for (std::sregex_iterator match(text.begin(), text.end(), entry), end; match != end; ++match)
    files[(*match)[1]] = "src/models/arch/" + (*match)[2].str() + ".cpp";
  return files;
}

int64_t count_lines(const fs::path& path) {
  std::ifstream in(path);
  return std::count(std::istreambuf_iterator<char>(in), {}, '\n');
}

/// What was run, and the largest error of each kind; an error below zero: not run.
struct Row {
  std::vector<std::string> models;
  double fp32 = -1, nf4 = -1, int8 = -1;
};

/// The model's logits over the first tokens of the goldens' prompt, against the golden tensor of that name: the norm of
/// the difference over the norm. Without such a tensor the model is run all the same, and the result is 0.
double error_of(const fs::path& model, const Checkpoint& goldens, LoadOptions options, const std::string& name) {
  options.dtype = DType::f32;
  const auto decoder = models::load_decoder(model, options);
  const bool is_seq2seq = goldens.find("source") != nullptr;
  const Tensor prompt = goldens.get(is_seq2seq ? "target" : "prompt");
  const int64_t count = name == "logits" || is_seq2seq ? prompt.count() : 24;
  Session session(*decoder, 1, count);
  if (is_seq2seq) {
    const Tensor source = goldens.get("source");
    const int64_t sequence = 0;
    session.encode({&sequence, 1}, {source.as<int32_t>(), static_cast<size_t>(source.count())});
  }
  const std::vector<float> found =
      session.append_all(0, {prompt.as<int32_t>(), prompt.as<int32_t>() + static_cast<size_t>(count)});
  if (!std::all_of(found.begin(), found.end(), [](float x) { return std::isfinite(x); })) return INFINITY;
  if (!goldens.find(name)) return 0;
  const Tensor expected = goldens.get(name);
  if (expected.count() != static_cast<int64_t>(found.size())) return INFINITY;
  double difference = 0, norm = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    const double e = expected.as<float>()[i];
    difference += (found[i] - e) * (found[i] - e);
    norm += e * e;
  }
  return std::sqrt(difference / norm);
}

void run(const fs::path& model, Row& row) {
  row.models.push_back(model.filename().string());
  const fs::path seq2seq = model / "seq2seq.safetensors";  // of an encoder-decoder: logits of a target, given a source
  const auto goldens = Checkpoint::open(fs::exists(seq2seq) ? seq2seq : model / "goldens.safetensors");
  LoadOptions plain, nf4, int8;
  nf4.quantization_config.load_in_4bit = nf4.quantization_config.bnb_4bit_use_double_quant = true;
  nf4.quantization_config.bnb_4bit_quant_type = "nf4";
  int8.quantization_config.load_in_8bit = true;
  row.fp32 = std::max(row.fp32, error_of(model, *goldens, plain, "logits"));
  row.nf4 = std::max(row.nf4, error_of(model, *goldens, nf4, "logits_nf4_dq"));
  row.int8 = std::max(row.int8, error_of(model, *goldens, int8, "logits_llm_int8"));
}

std::string cell(double error) { return error < 0 ? "not run" : fmt::format("{:.1e}", error); }

void print(const std::map<std::string, Row>& rows, const fs::path& repository) {
  const auto files = files_of_architectures(repository);
  fmt::print(
      "# Architectures\n\n"
      "Tiny random models (`tests/data/models`) against transformers in fp32: the norm of the difference of all "
      "logits\n"
      "over their norm, the largest of the models named. For NF4 with double quantization transformers runs with the\n"
      "weights that bitsandbytes quantizes and dequantizes; for LLM.int8() it runs with inputs quantized by rows as "
      "well,\n"
      "where an activation between two integers falls to either side. Lines: of the architecture's one file.\n\n"
      "Made by `build/release/tests/parity/architecture_table . > docs/results/architectures.md` (target\n"
      "`architecture_table`).\n\n"
      "| architecture | file | lines | tiny models | fp32 | NF4 + double quant | LLM.int8() |\n"
      "|---|---|---:|---|---:|---:|---:|\n");
  for (const auto& [name, file] : files) {
    const auto found = rows.find(name);
    const bool is_second_name = found == rows.end() && std::any_of(files.begin(), files.end(), [&](const auto& other) {
                                  return other.second == file && rows.contains(other.first);
                                });
    if (is_second_name) continue;
    const Row row = found == rows.end() ? Row{} : found->second;
    fmt::print("| {} | `{}` | {} | {} | {} | {} | {} |\n", name, fs::path(file).filename().string(),
               count_lines(repository / file), fmt::format("{}", fmt::join(row.models, ", ")), cell(row.fp32),
               cell(row.nf4), cell(row.int8));
  }
  fmt::print(
      "\n"
      "- Mixtral: the tree, footprint and quantized layers are those of transformers 4 and of all checkpoints, whose "
      "experts\n"
      "  are linear layers. transformers 5 fuses them while it loads, so that bitsandbytes leaves them in 16 bits; a\n"
      "  quantized checkpoint that it wrote, with plain experts, is used as it is.\n"
      "- Gemma 2: the soft cap of attention scores is applied, as transformers' default (eager) attention does.\n"
      "- Phi-3 with longrope: a sequence that grows past original_max_position_embeddings is computed anew with the "
      "long\n"
      "  factors, as transformers' generate does.\n"
      "- Falcon: its linear layers are quantized, as by transformers 4. transformers 5 leaves them in 16 bits without "
      "a\n"
      "  word, since their class is its own. With ALiBi the bias is rounded to bf16 in every dtype, as there.\n"
      "- MPT: clip_qkv is refused, and what transformers' model ignores: qk_ln, prefix_lm, alibi false, an "
      "alibi_bias_max\n"
      "  other than 8 (mpt-7b-storywriter), logit_scale, biases, another expansion_ratio. `MPTForCausalLM` is its "
      "other\n"
      "  name.\n"
      "- Refused, with the key, what was found and what was expected: bidirectional Gemma, layer types other than\n"
      "  sliding_attention and full_attention, for Phi-3 rope types other than default and longrope, a partial "
      "rotation\n"
      "  of Falcon or StarCoder2, cross-attention of GPT-BigCode.\n");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    fmt::print(stderr, "usage: {} REPOSITORY\n", argv[0]);
    return 2;
  }
  const fs::path repository = argv[1];
  std::map<std::string, Row> rows;
  try {
    for (const std::string& name : models::testing::tiny_models("expected.json")) {
      const fs::path model = repository / "tests/data/models" / name;
      const Json config = read_json(model / "config.json");
      run(model, rows[config["architectures"][0].get<std::string>()]);
    }
    print(rows, repository);
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 1;
  }
  return 0;
}
