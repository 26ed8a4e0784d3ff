// What makes weights better, on one rank: all ranks have the same weights, gradients and moments, to the last bit, since ra_all_reduce gives
// them the same sums; nobody sends weights to anybody.
#pragma once

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>

#include "model.hpp"

/** Adam (Kingma and Ba 2015) with a warm-up, a decay to a tenth, and gradients of at most length 1. */
struct Schedule {
  double rate = 3e-3;
  int64_t warm_up = 20, steps = 200;

  double at(int64_t step) const {
    if (step < warm_up) return rate * static_cast<double>(step + 1) / static_cast<double>(warm_up);
    const double done =
        std::min(1.0, static_cast<double>(step - warm_up) / static_cast<double>(std::max<int64_t>(steps - warm_up, 1)));
    return rate * (0.55 + 0.45 * std::cos(done * 3.14159265358979));
  }
};

class Trainer {
 public:
  Trainer(const Shape& shape, int32_t world_size, int32_t rank, ra_context* context, uint64_t seed)
      : shape_(shape),
        context_(context),
        model_(shape, world_size, rank, context),
        seed_(seed),
        values_(make_weights(shape, seed)),
        gradients_(values_.size()),
        first_(values_.size()),
        second_(values_.size()) {}

  int64_t step() const { return step_; }
  const Floats& values() const { return values_; }

  /** One step on a part of the text that the step's number and the seed choose. Returns the loss before it, in bits per byte. */
  double train(std::string_view text, const Schedule& schedule) {
    std::seed_seq sequence{seed_, static_cast<uint64_t>(step_)};
    std::mt19937_64 random(sequence);
    const auto places = text.size() - static_cast<size_t>(shape_.context);
    const double loss = differentiate(text.substr(random() % places));
    double squares = 0;
    for (const float g : gradients_) squares += static_cast<double>(g) * static_cast<double>(g);
    const double shrink = std::min(1.0, 1 / std::sqrt(squares)), rate = schedule.at(step_++);
    const auto t = static_cast<double>(step_);
    const double first_bias = 1 - std::pow(0.9, t), second_bias = 1 - std::pow(0.95, t);
    for (size_t i = 0; i < values_.size(); ++i) {
      const auto g = static_cast<float>(shrink * static_cast<double>(gradients_[i]));
      first_[i] += 0.1F * (g - first_[i]);
      second_[i] += 0.05F * (g * g - second_[i]);
      const double size = std::sqrt(static_cast<double>(second_[i]) / second_bias) + 1e-8;
      values_[i] -= static_cast<float>(rate * static_cast<double>(first_[i]) / first_bias / size);
    }
    return loss;
  }

  /** Bits per byte of `count` parts of a text, one behind the other. */
  double measure(std::string_view text, int64_t count) {
    double sum = 0;
    for (int64_t n = 0; n < count; ++n)
      sum += sum_over_ranks(model_.forward(values_, text.substr(static_cast<size_t>(n * shape_.context))));
    return sum / static_cast<double>(count) / to_bits();
  }

  /** The gradients of all ranks' mean loss, in nats, at `text`. Returns that, in bits. */
  double differentiate(std::string_view text) {
    const double loss = model_.forward(values_, text);
    model_.backward(values_, text, 1 / static_cast<float>(shape_.context), gradients_);
    gradients_.push_back(static_cast<float>(loss));
    reduce(gradients_);
    const auto total = static_cast<double>(gradients_.back());
    gradients_.pop_back();
    return total / to_bits();
  }

  /** The largest error of derivatives along random directions, against those of central differences, relative to their size. */
  double check_gradients(std::string_view text, int64_t directions) {
    differentiate(text);
    const Floats gradients = gradients_, values = values_;
    double worst = 0;
    for (int64_t n = 0; n < directions; ++n) {
      std::mt19937_64 random(seed_ + static_cast<uint64_t>(n));
      Floats direction(values.size());
      for (float& x : direction) x = (random() & 1) != 0 ? 1.0F : -1.0F;
      double slope = 0, size = 0;
      for (size_t i = 0; i < values.size(); ++i) {
        slope += static_cast<double>(gradients[i]) * static_cast<double>(direction[i]);
        size += static_cast<double>(gradients[i]) * static_cast<double>(gradients[i]);
      }
      constexpr float step = 1e-3F;
      const auto loss_at = [&](float by) {
        for (size_t i = 0; i < values.size(); ++i) values_[i] = values[i] + by * direction[i];
        return sum_over_ranks(model_.forward(values_, text)) / static_cast<double>(shape_.context);
      };
      const double difference = (loss_at(step) - loss_at(-step)) / (2 * static_cast<double>(step));
      worst = std::max(worst, std::abs(difference - slope) / std::sqrt(size));
    }
    values_ = values;
    return worst;
  }

  /** Whether any rank says so: all have to end at the same step. */
  bool is_time_over(bool is_over) const { return sum_over_ranks(is_over ? 1 : 0) > 0; }

  // ---------------------------------------------------------------- checkpoints

  /** Written beside the old one, which it then replaces: whoever is killed meanwhile has a whole one. */
  void save(const std::filesystem::path& path) const {
    const std::filesystem::path unfinished = path.string() + ".unfinished";
    std::ofstream file(unfinished, std::ios::binary);
    const Header header{kMagic, step_, static_cast<int64_t>(values_.size()), shape_};
    file.write(reinterpret_cast<const char*>(&header), sizeof header);
    for (const Floats* part : {&values_, &first_, &second_})
      file.write(reinterpret_cast<const char*>(part->data()),
                 static_cast<std::streamsize>(part->size() * sizeof(float)));
    file.close();
    if (!file) throw std::runtime_error("cannot write " + unfinished.string());
    std::filesystem::rename(unfinished, path);
  }
  void load(const std::filesystem::path& path) {
    std::ifstream file(path, std::ios::binary);
    Header header{};
    file.read(reinterpret_cast<char*>(&header), sizeof header);
    if (!file || header.magic != kMagic) throw std::runtime_error(path.string() + " is no checkpoint");
    if (header.count != static_cast<int64_t>(values_.size()))
      throw std::runtime_error(
          fmt::format("{} has {} weights; this model has {}", path.string(), header.count, values_.size()));
    for (Floats* part : {&values_, &first_, &second_})
      file.read(reinterpret_cast<char*>(part->data()), static_cast<std::streamsize>(part->size() * sizeof(float)));
    if (!file) throw std::runtime_error(path.string() + " ends too early");
    step_ = header.step;
  }

 private:
  static constexpr uint64_t kMagic = 0x31'6e'69'61'72'74'61'72;  // "ratrain1"
  struct Header {
    uint64_t magic;
    int64_t step, count;
    Shape shape;
  };

  double to_bits() const { return static_cast<double>(shape_.context) * std::log(2.0); }
  void reduce(Floats& numbers) const {
    ra_reduce_args args;
    ra_init_reduce_args(&args, sizeof args);
    args.data = numbers.data(), args.count = static_cast<int64_t>(numbers.size());
    ra_error error;
    check(ra_all_reduce(context_, &args, &error), error);
  }
  double sum_over_ranks(double x) const {
    Floats parts{static_cast<float>(x), static_cast<float>(x - static_cast<double>(static_cast<float>(x)))};
    reduce(parts);
    return static_cast<double>(parts[0]) + static_cast<double>(parts[1]);
  }

  const Shape shape_;
  ra_context* const context_;
  Model model_;
  const uint64_t seed_;
  int64_t step_ = 0;
  Floats values_, gradients_, first_, second_;
};
