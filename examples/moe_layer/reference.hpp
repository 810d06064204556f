// The same layer in double, densely and by the textbook: every expert sees every token, and a mask of weights picks what counts. Shares no code with the
// library.
#pragma once

#include "problem.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace moe_layer {

struct Reference {
  std::vector<double> y;
  double loss = 0;
  std::vector<std::int32_t> experts;  ///< [T, K]
  std::vector<double> grad_x;
  std::vector<double> grad_gate;
  std::vector<double> grad_up;
  std::vector<double> grad_down;
};

class DenseLayer {
 public:
  explicit DenseLayer(const Problem& problem)
      : p_(problem),
        t_(size(p_.shape.tokens)),
        e_(size(p_.shape.experts)),
        h_(size(p_.shape.hidden)),
        f_(size(p_.shape.ffn)) {}

  Reference run() {
    route();
    result_.y.assign(t_ * h_, 0.0);
    result_.grad_x.assign(t_ * h_, 0.0);
    result_.grad_gate.assign(e_ * h_, 0.0);
    result_.grad_up.assign(e_ * h_ * f_, 0.0);
    result_.grad_down.assign(e_ * h_ * f_, 0.0);
    for (std::size_t t = 0; t < t_; ++t) {
      for (std::size_t e = 0; e < e_; ++e) pass_expert(t, e);
    }
    add_loss();
    for (std::size_t t = 0; t < t_; ++t) pass_router(t);
    return result_;
  }

 private:
  static std::size_t size(std::int64_t n) { return static_cast<std::size_t>(n); }

  /// Probabilities, and weights: those of the K largest probabilities, divided by their sum, 0 elsewhere.
  void route() {
    probability_.assign(t_ * e_, 0.0);
    weight_.assign(t_ * e_, 0.0);
    grad_weight_.assign(t_ * e_, 0.0);
    grad_probability_.assign(t_ * e_, 0.0);
    for (std::size_t t = 0; t < t_; ++t) {
      double sum = 0;
      for (std::size_t e = 0; e < e_; ++e) {
        double logit = 0;
        for (std::size_t c = 0; c < h_; ++c)
          logit += static_cast<double>(p_.x[t * h_ + c]) * static_cast<double>(p_.gate[e * h_ + c]);
        sum += probability_[t * e_ + e] = std::exp(logit);
      }
      std::vector<std::size_t> order(e_);
      for (std::size_t e = 0; e < e_; ++e) {
        probability_[t * e_ + e] /= sum;
        order[e] = e;
      }
      std::sort(order.begin(), order.end(),
                [&](std::size_t a, std::size_t b) { return probability_[t * e_ + a] > probability_[t * e_ + b]; });
      double chosen = 0;
      for (std::size_t k = 0; k < K; ++k) chosen += probability_[t * e_ + order[k]];
      for (std::size_t k = 0; k < K; ++k) {
        weight_[t * e_ + order[k]] = probability_[t * e_ + order[k]] / chosen;
        result_.experts.push_back(static_cast<std::int32_t>(order[k]));
      }
    }
  }

  /// One expert's MLP on one token, forward and backward; without weight there is no gradient.
  void pass_expert(std::size_t t, std::size_t e) {
    const double weight = weight_[t * e_ + e];
    std::vector<double> hidden(f_, 0.0), active(f_), output(h_, 0.0), grad_hidden(f_, 0.0);
    for (std::size_t c = 0; c < h_; ++c) {
      for (std::size_t f = 0; f < f_; ++f)
        hidden[f] += static_cast<double>(p_.x[t * h_ + c]) * static_cast<double>(p_.up[(e * h_ + c) * f_ + f]);
    }
    for (std::size_t f = 0; f < f_; ++f) active[f] = hidden[f] / (1 + std::exp(-hidden[f]));
    for (std::size_t f = 0; f < f_; ++f) {
      for (std::size_t c = 0; c < h_; ++c) output[c] += active[f] * static_cast<double>(p_.down[(e * f_ + f) * h_ + c]);
    }
    for (std::size_t c = 0; c < h_; ++c) {
      const double upstream = p_.grad_y[t * h_ + c];
      result_.y[t * h_ + c] += weight * output[c];
      grad_weight_[t * e_ + e] += upstream * output[c];
      for (std::size_t f = 0; f < f_; ++f) {
        result_.grad_down[(e * f_ + f) * h_ + c] += weight * upstream * active[f];
        grad_hidden[f] += weight * upstream * static_cast<double>(p_.down[(e * f_ + f) * h_ + c]);
      }
    }
    for (std::size_t f = 0; f < f_; ++f) {
      const double sigmoid = 1 / (1 + std::exp(-hidden[f]));
      const double slope = grad_hidden[f] * (sigmoid + hidden[f] * sigmoid * (1 - sigmoid));
      for (std::size_t c = 0; c < h_; ++c) {
        result_.grad_up[(e * h_ + c) * f_ + f] += slope * static_cast<double>(p_.x[t * h_ + c]);
        result_.grad_x[t * h_ + c] += slope * static_cast<double>(p_.up[(e * h_ + c) * f_ + f]);
      }
    }
  }

  /// coefficient * E * sum over e of f_e P_e, f_e the share of assignments and P_e the mean probability.
  void add_loss() {
    std::vector<double> share(e_, 0.0);
    for (const std::int32_t e : result_.experts) share[size(e)] += 1.0 / static_cast<double>(t_ * K);
    for (std::size_t t = 0; t < t_; ++t) {
      for (std::size_t e = 0; e < e_; ++e) {
        const double slope =
            static_cast<double>(loss_coefficient) * static_cast<double>(e_) * share[e] / static_cast<double>(t_);
        result_.loss += slope * probability_[t * e_ + e];
        grad_probability_[t * e_ + e] += slope;
      }
    }
  }

  void pass_router(std::size_t t) {
    const double* weight = weight_.data() + t * e_;
    const double* probability = probability_.data() + t * e_;
    double mean = 0;
    double chosen = 0;
    for (std::size_t e = 0; e < e_; ++e) {
      if (weight[e] == 0) continue;
      mean += weight[e] * grad_weight_[t * e_ + e];
      chosen += probability[e];
    }
    std::vector<double> grad(e_);
    double sum = 0;
    for (std::size_t e = 0; e < e_; ++e) {
      grad[e] = grad_probability_[t * e_ + e] + (weight[e] == 0 ? 0 : (grad_weight_[t * e_ + e] - mean) / chosen);
      sum += grad[e] * probability[e];
    }
    for (std::size_t e = 0; e < e_; ++e) {
      const double grad_logit = probability[e] * (grad[e] - sum);
      for (std::size_t c = 0; c < h_; ++c) {
        result_.grad_gate[e * h_ + c] += grad_logit * static_cast<double>(p_.x[t * h_ + c]);
        result_.grad_x[t * h_ + c] += grad_logit * static_cast<double>(p_.gate[e * h_ + c]);
      }
    }
  }

  const Problem& p_;
  std::size_t t_, e_, h_, f_;
  std::vector<double> probability_, weight_, grad_weight_, grad_probability_;
  Reference result_;
};

}  // namespace moe_layer
