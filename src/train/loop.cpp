// A run is a function of its arguments and data: order, dropout and clipping follow from the step's number.
#include "train/loop.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>

#include "adapters/peft_files.h"
#include "adapters/pissa.h"
#include "adapters/whole_files.h"
#include "base/cancel.h"
#include "base/error.h"
#include "base/json.h"
#include "base/output.h"
#include "device/cpu.h"
#include "models/module_tree.h"
#include "optim/optimizer_state.h"
#include "train/early_stop.h"
#include "train/event_log.h"
#include "train/model.h"
#include "train/run_identity.h"
#include "train/schedule.h"

namespace nibble {

namespace train {
namespace fs = std::filesystem;
namespace {

std::vector<ParameterGroup> parameters_of(const adapters::Adapter& adapter) {
  ParameterGroup group;
  for (const auto& [name, variable] : adapter.variables())
    group.params.push_back({.name = name, .shape = variable->value.shape(), .data = variable->value.data()});
  return {std::move(group)};
}

/// Weight decay passes biases and norms by, as in transformers' Trainer.
bool is_decayed(const models::ModelSpec& spec, const std::string& name) {
  if (name.find("bias") != std::string::npos) return false;
  const models::ModuleSpec* module = models::find_module(spec, name.substr(0, name.rfind('.')));
  return !module || module->kind != models::ModuleKind::norm;
}

constexpr std::string_view kCheckpoint = "checkpoint-";  // and the step

/// The steps and paths of output_dir's checkpoint-N, in no order.
std::vector<std::pair<int64_t, fs::path>> checkpoints_in(const fs::path& output_dir) {
  std::vector<std::pair<int64_t, fs::path>> found;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(output_dir, error)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with(kCheckpoint) || name.find_first_not_of("0123456789", kCheckpoint.size()) != std::string::npos)
      continue;
    const std::string number = name.substr(kCheckpoint.size());
    if (!number.empty() && number.size() <= 15) found.emplace_back(std::stoll(number), entry.path());
  }
  return found;
}

OptimizerOptions options_of(const TrainingArguments& arguments) {
  OptimizerOptions options{.lr = arguments.learning_rate, .weight_decay = arguments.weight_decay};
  if (arguments.adam_beta1 || arguments.adam_beta2)
    options.betas = {arguments.adam_beta1.value_or(0.9), arguments.adam_beta2.value_or(0.999)};
  if (!options.betas.empty() && arguments.optim.find("ademamix") != std::string::npos) options.betas.push_back(0.9999);
  options.eps = arguments.adam_epsilon;
  return options;
}

bool has_target(const Dataset::Sample& sample) {
  return std::find(sample.is_target.begin() + std::min<ptrdiff_t>(1, std::ssize(sample.is_target)),
                   sample.is_target.end(), true) != sample.is_target.end();
}

int64_t warmup_steps_of(const TrainingArguments& arguments, int64_t total_steps) {
  if (arguments.warmup_steps > 0) return arguments.warmup_steps;
  return static_cast<int64_t>(std::ceil(arguments.warmup_ratio * static_cast<double>(total_steps)));
}

/// One run, from its first or a later step to its last.
class Loop {
 public:
  Loop(const models::Decoder& base, adapters::Adapter& adapter, std::string base_model,
       const TrainingArguments& arguments, const Dataset& train, const Dataset* evaluation,
       const std::function<void(const TrainingProgress&)>& on_progress,
       const std::function<void(const TrainingProgress&)>& on_step)
      : base_(base),
        adapter_(adapter),
        base_model_(std::move(base_model)),
        arguments_(arguments),
        evaluation_(evaluation),
        on_progress_(on_progress),
        on_step_(on_step),
        working_(adapters::to_device(base.backend(), adapter)),
        model_(base, working_, arguments.gradient_checkpointing, arguments.activation_offloading),
        plan_(train, arguments),
        optimizer_(optimizer_for(arguments.optim, parameters_of(working_), options_of(arguments),
                                 base.backend().pool().threads(), device::to_string(base.backend().device()))),
        schedule_{arguments.lr_scheduler_type, warmup_steps_of(arguments, plan_.total_steps()), plan_.total_steps()},
        early_stop_(arguments.early_stopping_patience),
        identity_(run_identity(arguments, train, base, adapter)),
        evaluation_hash_(evaluation ? hash_of(*evaluation) : "") {
    if (arguments.weight_decay == 0) return;
    for (const auto& [name, variable] : working_.variables())
      if (!is_decayed(base.spec(), name)) optimizer_.override_config(name, {.weight_decay = 0});
  }

  TrainingReport run() {
    open_output();
    if (arguments_.resume_from_checkpoint) resume(find_checkpoint(*arguments_.resume_from_checkpoint));
    if (arguments_.report_to == "tensorboard") events_.emplace(arguments_.output_dir / "runs");
    report_.trainable_parameters = trainable_parameters_text(adapter_, base_.summary().num_parameters);
    begin_ = since_report_ = Clock::now();
    try {
      run_steps();
    } catch (const Error& error) {
      if (error.code() == ErrorCode::cancelled) end_interrupted();
      throw;
    }
    report_.stopped_early = early_stop_.is_over();
    if (early_stop_.has_best()) restore_best();
    finish();
    return report_;
  }

 private:
  using Clock = std::chrono::steady_clock;

  void open_output() {
    const fs::path& out = arguments_.output_dir;
    std::error_code error;
    fs::create_directories(out, error);
    if (error) fail(ErrorCode::io, "{}: cannot be made: {}", out.string(), error.message());
    recover_directories(out, kCheckpoint);
  }

  void run_steps() {
    evaluate_if_due();  // an interruption may have left that
    while (step_ < plan_.total_steps() && !early_stop_.is_over()) {
      throw_if_cancelled();
      run_step();
      if (on_step_) on_step_(progress(report_.final_loss));
      if (step_ % arguments_.logging_steps == 0 || step_ == plan_.total_steps()) report_progress();
      evaluate_if_due();
      if (arguments_.save_steps > 0 && step_ % arguments_.save_steps == 0) save_checkpoint();
    }
    if (evaluation_ && evaluated_ != step_) evaluate();
  }

  /// Whatever save_steps says: the steps since the last checkpoint are not lost.
  [[noreturn]] void end_interrupted() {
    if (step_ > 0 && saved_ != step_) save_checkpoint();
    fail(ErrorCode::cancelled, "interrupted after step {} of {}{}", step_, plan_.total_steps(),
         step_ > 0 ? "; resume_from_checkpoint goes on from " + checkpoint_path().string() : "");
  }

  void run_step() {
    std::vector<Batch> batches = plan_.batches_of(step_);
    int64_t targets = 0;
    for (const Batch& batch : batches) targets += batch.target_count();
    double loss = 0;
    uint64_t micro = 0;
    for (const Batch& batch : batches) {
      const uint64_t seed = arguments_.seed ^ (static_cast<uint64_t>(step_) << 20 | micro++) * 0xbf58476d1ce4e5b9u;
      loss += model_.accumulate_gradients(batch, seed, static_cast<float>(1.0 / static_cast<double>(targets)));
      const auto count = static_cast<int64_t>(batch.ids.size() + batch.source_ids.size());
      report_.trained_tokens += count;
      tokens_ += count;
      throw_if_cancelled();
    }
    loss /= static_cast<double>(targets);
    update(loss);
    losses_ += loss * static_cast<double>(targets);
    targets_ += targets;
    report_.final_loss = loss;
    ++step_;
    report_.steps = step_;
  }

  /// Gives the optimizer this step's gradients, checked, and takes them away again.
  void update(double loss) {
    if (base_.backend().cuda()) base_.backend().cuda()->synchronize();  // the optimizer has a stream of its own
    auto& parameters = optimizer_.groups()[0].params;
    size_t i = 0;
    const auto variables = working_.variables();
    for (const auto& [name, variable] : variables)
      parameters[i++].grad = variable->grad ? variable->grad.data() : nullptr;
    grad_norm_ = optimizer_.gradient_norm();
    if (!std::isfinite(loss) || !std::isfinite(grad_norm_))
      fail(ErrorCode::internal, "step {}: the loss is {} and the gradient's norm {}, expected finite numbers{}",
           step_ + 1, loss, grad_norm_, first_bad_tensor());
    learning_rate_ = arguments_.learning_rate * schedule_.factor(step_);
    optimizer_.set_lr(learning_rate_);
    optimizer_.step(arguments_.max_grad_norm > 0 ? optimizer_.clip_scale(arguments_.max_grad_norm) : 1);
    optimizer_.synchronize();
    for (const auto& [name, variable] : variables) variable->grad = {};
  }

  /// Calls body(working variable, host variable) for those of a GPU.
  template <typename Body>
  void for_each_copy(const Body& body) {
    if (!base_.backend().cuda()) return;
    const auto working = working_.variables(), host = adapter_.variables();
    for (size_t i = 0; i < host.size(); ++i) body(working[i].variable, host[i].variable);
  }

  /// Before the adapter is read: it is as old as the last call where a GPU trains a copy of it.
  void fetch_parameters() {
    for_each_copy([&](const autograd::Var& from, const autograd::Var& to) {
      base_.backend().download(to->value.data(), from->value.data(), to->value.size_bytes());
    });
  }

  void send_parameters() {
    for_each_copy([&](const autograd::Var& to, const autograd::Var& from) {
      base_.backend().upload(to->value.data(), from->value.data(), from->value.size_bytes());
    });
  }

  std::string first_bad_tensor() const {
    for (const auto& [name, variable] : working_.variables()) {
      const Tensor grad = base_.backend().to_host(variable->grad);
      for (int64_t i = 0; grad && i < grad.count(); ++i)
        if (!std::isfinite(grad.as<float>()[i])) return "; first in the gradient of " + name;
    }
    return "";
  }

  /// Of the GPU's memory, or of main memory.
  int64_t peak_bytes() const {
    const device::CudaStream *gpu = base_.backend().cuda(), *of_optimizer = optimizer_.state().backend->cuda();
    return gpu ? gpu->peak_bytes() + of_optimizer->peak_bytes() : device::peak_rss_bytes();
  }

  TrainingProgress progress(double loss) const {
    const auto now = Clock::now();
    TrainingProgress progress;
    progress.step = step_;
    progress.total_steps = plan_.total_steps();
    progress.epoch = plan_.epoch_of(step_);
    progress.loss = loss;
    progress.learning_rate = learning_rate_;
    progress.grad_norm = grad_norm_;
    const double seconds = std::chrono::duration<double>(now - since_report_).count();
    progress.tokens_per_second = static_cast<double>(tokens_) / std::max(seconds, 1e-9);
    progress.peak_memory_bytes = peak_bytes();
    return progress;
  }

  double mean_loss() const { return targets_ > 0 ? losses_ / static_cast<double>(targets_) : report_.final_loss; }

  void report_progress() {
    const TrainingProgress now = progress(mean_loss());
    log_.push_back({{"step", now.step},
                    {"epoch", now.epoch},
                    {"loss", now.loss},
                    {"learning_rate", now.learning_rate},
                    {"grad_norm", now.grad_norm}});
    if (events_) {
      events_->scalar("train/loss", now.step, now.loss);
      events_->scalar("train/learning_rate", now.step, now.learning_rate);
      events_->scalar("train/grad_norm", now.step, now.grad_norm);
      events_->scalar("train/epoch", now.step, now.epoch);
      events_->scalar("train/tokens_per_second", now.step, now.tokens_per_second);
    }
    if (on_progress_) on_progress_(now);
    losses_ = 0;
    targets_ = tokens_ = 0;
    since_report_ = Clock::now();
  }

  void evaluate_if_due() {
    const bool is_due = evaluation_ && arguments_.eval_steps > 0 && step_ > 0 && step_ % arguments_.eval_steps == 0;
    if (is_due && evaluated_ != step_) evaluate();
  }

  void evaluate() {
    const auto begin = Clock::now();
    double loss = 0;
    int64_t targets = 0;
    const auto count = evaluation_->samples.size(), size = static_cast<size_t>(arguments_.per_device_train_batch_size);
    for (size_t first = 0; first < count; first += size) {
      std::vector<size_t> samples;
      for (size_t i = first; i < std::min(count, first + size); ++i) samples.push_back(i);
      const Batch batch = make_batch(*evaluation_, samples);
      loss += model_.evaluate(batch);
      targets += batch.target_count();
      throw_if_cancelled();
    }
    loss /= static_cast<double>(targets);
    if (!std::isfinite(loss))
      fail(ErrorCode::internal, "step {}: the evaluation loss is {}, expected a finite number", step_, loss);
    report_.eval_loss = loss;
    evaluated_ = step_;
    log_.push_back({{"step", step_}, {"epoch", plan_.epoch_of(step_)}, {"eval_loss", loss}});
    if (events_) events_->scalar("eval/loss", step_, loss);
    since_report_ += Clock::now() - begin;  // tokens a second are those of training
    TrainingProgress now = progress(mean_loss());
    now.eval_loss = loss;
    if (on_progress_) on_progress_(now);
    if (!early_stop_.sees_best(loss)) return;
    fetch_parameters();
    early_stop_.keep(adapter_.variables());
  }

  void restore_best() {
    early_stop_.restore(adapter_.variables());
    send_parameters();
    report_.eval_loss = early_stop_.best_loss();
  }

  /// The adapter, or the whole model in `dtype`.
  void write_trained(const fs::path& directory, DType dtype) const {
    if (adapter_.is_whole)
      adapters::write_whole(adapter_, base_, dtype, directory);
    else
      write_adapter(adapters::onto_original(adapter_), base_.spec(), base_model_, directory);
  }

  fs::path checkpoint_path() const {
    return arguments_.output_dir / (std::string(kCheckpoint) + std::to_string(step_));
  }

  /// checkpoint-N appears whole or not at all.
  void save_checkpoint() {
    const auto begin = Clock::now();
    fetch_parameters();
    // A run that goes on from an earlier checkpoint comes by those that it left.
    AtomicDirectory directory(checkpoint_path(), OldOutput::replaced);
    write_trained(directory.path(), DType::f32);
    optimizer_.save(directory.path() / "optimizer.safetensors");
    if (early_stop_.has_best()) early_stop_.write_best(directory.path(), adapter_.variables());
    write_state(directory.path());
    directory.commit_synced();
    saved_ = step_;
    if (arguments_.save_total_limit > 0) remove_old_checkpoints();
    since_report_ += Clock::now() - begin;
  }

  /// Those of earlier steps alone: later ones are another run's, or will be written again.
  void remove_old_checkpoints() const {
    std::vector<std::pair<int64_t, fs::path>> earlier = checkpoints_in(arguments_.output_dir);
    std::erase_if(earlier, [&](const auto& checkpoint) { return checkpoint.first >= step_; });
    std::sort(earlier.begin(), earlier.end());
    std::error_code ignored;  // what stays takes room, and nothing else
    for (size_t i = 0; i + static_cast<size_t>(arguments_.save_total_limit) <= earlier.size(); ++i)
      fs::remove_all(earlier[i].second, ignored);
  }

  Json state() const {
    Json state = {{"global_step", step_},
                  {"epoch", plan_.epoch_of(step_)},
                  {"max_steps", plan_.total_steps()},
                  {"run", identity_},
                  {"log_history", log_}};
    // Sums since the last report, as bits, so that a resumed run reports the same numbers.
    state["pending"] = {{"losses", losses_}, {"targets", targets_}, {"final_loss", report_.final_loss}};
    if (evaluation_) state["evaluation_data"] = evaluation_hash_;
    if (report_.eval_loss) state["evaluation"] = {{"step", evaluated_}, {"loss", *report_.eval_loss}};
    if (early_stop_.has_best()) state["early_stop"] = early_stop_.to_json();
    return state;
  }

  void write_state(const fs::path& directory) const {
    write_file(directory / "trainer_state.json", state().dump(1, ' ', false, Json::error_handler_t::replace) + "\n");
  }

  void resume(const fs::path& checkpoint) {
    const fs::path path = checkpoint / "trainer_state.json";
    const Json state = read_json(path);
    require_same_run(state, identity_, path.string());
    step_ = get_value<int64_t>(state, "global_step", path.string());
    if (step_ < 0) fail(ErrorCode::corrupt_file, "{}: key 'global_step': found {}", path.string(), step_);
    if (const auto log = state.find("log_history"); log != state.end() && log->is_array())
      for (const Json& entry : *log) log_.push_back(entry);
    if (const auto pending = state.find("pending"); pending != state.end()) {
      losses_ = find_value<double>(*pending, "losses", path.string()).value_or(0);
      targets_ = find_value<int64_t>(*pending, "targets", path.string()).value_or(0);
      report_.final_loss = find_value<double>(*pending, "final_loss", path.string()).value_or(0);
    }
    if (evaluation_ && find_value<std::string>(state, "evaluation_data", path.string()) == evaluation_hash_)
      resume_evaluation(state, checkpoint, path.string());
    adapters::Adapter stored = adapter_.is_whole ? adapters::read_whole(base_.spec(), checkpoint)
                                                 : adapters::read_adapter(base_.spec(), checkpoint);
    const bool has_start = !adapter_.layers.empty() && adapter_.layers[0].start_a;
    if (has_start) stored = adapters::trained_half(stored);
    const auto theirs_all = stored.variables(), ours = adapter_.variables();
    require(theirs_all.size() == ours.size(), "{}: found {} trained tensors, expected {}", checkpoint.string(),
            theirs_all.size(), ours.size());
    for (size_t i = 0; i < ours.size(); ++i) {
      const Tensor& from = theirs_all[i].variable->value;
      require(theirs_all[i].name == ours[i].name && from.shape() == ours[i].variable->value.shape(),
              "{}: '{}' is another than this run's", checkpoint.string(), theirs_all[i].name);
      std::memcpy(ours[i].variable->value.data(), from.data(), static_cast<size_t>(from.size_bytes()));
    }
    send_parameters();
    optimizer_.load(checkpoint / "optimizer.safetensors");
    report_.steps = step_;
  }

  /// Losses on these data alone can be compared with those to come.
  void resume_evaluation(const Json& state, const fs::path& checkpoint, const std::string& source) {
    if (const auto evaluation = state.find("evaluation"); evaluation != state.end()) {
      evaluated_ = get_value<int64_t>(*evaluation, "step", source);
      report_.eval_loss = get_value<double>(*evaluation, "loss", source);
    }
    if (const auto seen = state.find("early_stop"); seen != state.end() && arguments_.early_stopping_patience > 0)
      early_stop_.read(*seen, source, checkpoint, adapter_.variables());
  }

  /// The adapter beside the checkpoints: written in a folder of its own, then moved file by file.
  void finish() {
    fetch_parameters();
    const fs::path out = arguments_.output_dir, staging = out / ".adapter";
    std::error_code error;
    fs::remove_all(staging, error);
    fs::create_directories(staging, error);
    write_trained(staging, base_.weights().dtype());
    std::vector<fs::path> names;
    for (const auto& entry : fs::directory_iterator(staging)) names.push_back(entry.path().filename());
    write_state(staging);
    names.emplace_back("trainer_state.json");
    sync_tree(staging);
    for (const fs::path& name : names) {
      fs::rename(staging / name, out / name, error);
      if (error) fail(ErrorCode::io, "{}: cannot be written: {}", (out / name).string(), error.message());
    }
    fs::remove_all(staging, error);
    sync_path(out);
    const double seconds = std::chrono::duration<double>(Clock::now() - begin_).count();
    report_.tokens_per_second = static_cast<double>(report_.trained_tokens) / std::max(seconds, 1e-9);
    report_.peak_memory_bytes = peak_bytes();
  }

  const models::Decoder& base_;
  adapters::Adapter& adapter_;
  std::string base_model_;
  const TrainingArguments& arguments_;
  const Dataset* evaluation_;
  const std::function<void(const TrainingProgress&)>& on_progress_;
  const std::function<void(const TrainingProgress&)>& on_step_;
  adapters::Adapter working_;  // adapter_, or on a GPU its copy there
  TrainableModel model_;
  StepPlan plan_;
  Optimizer optimizer_;
  LearningRateSchedule schedule_;
  TrainingReport report_;
  int64_t step_ = 0;
  int64_t evaluated_ = -1, saved_ = -1;
  double losses_ = 0;  // since the last report
  int64_t targets_ = 0, tokens_ = 0;
  double grad_norm_ = 0, learning_rate_ = 0;
  Json log_ = Json::array();
  std::optional<EventLog> events_;
  EarlyStop early_stop_;
  Json identity_;
  std::string evaluation_hash_;
  Clock::time_point begin_, since_report_;
};

}  // namespace

fs::path find_checkpoint(const fs::path& path) {
  if (fs::exists(path / "trainer_state.json") && fs::exists(path / "optimizer.safetensors")) return path;
  const auto checkpoints = checkpoints_in(path);
  if (checkpoints.empty()) fail(ErrorCode::not_found, "resume_from_checkpoint: no checkpoint in '{}'", path.string());
  return std::max_element(checkpoints.begin(), checkpoints.end())->second;
}

TrainingReport train_adapter(const models::Decoder& base, adapters::Adapter& adapter, const std::string& base_model,
                             const TrainingArguments& arguments, const Dataset& train, const Dataset* evaluation,
                             const std::function<void(const TrainingProgress&)>& on_progress,
                             const std::function<void(const TrainingProgress&)>& on_step) {
  arguments.validate();
  require(evaluation || arguments.eval_steps == 0, "eval_steps: found {} without data to evaluate on",
          arguments.eval_steps);
  require(!evaluation || std::any_of(evaluation->samples.begin(), evaluation->samples.end(), has_target),
          "evaluation data: found no token to predict");
  return Loop(base, adapter, base_model, arguments, train, evaluation, on_progress, on_step).run();
}

}  // namespace train
}  // namespace nibble
