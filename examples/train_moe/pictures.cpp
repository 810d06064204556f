#include "pictures.hpp"

#include "options.hpp"

#include <cerrno>
#include <cstdio>
#include <fstream>

#include <sys/wait.h>
#include <unistd.h>

namespace train_moe {
namespace {

namespace fs = std::filesystem;

constexpr int window = 20;  // steps of the running mean in the first picture

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3f", value);
  return text;
}

/// One block per run, two empty lines between: step, MaxVio, its mean over the last `window` steps.
void write_max_vio_data(const std::vector<RunResult>& runs, const fs::path& path) {
  std::ofstream file(path);
  for (const RunResult& run : runs) {
    double sum = 0;
    for (std::size_t i = 0; i < run.steps.size(); ++i) {
      sum += mean_max_vio(run.steps[i]);
      if (i >= window) sum -= mean_max_vio(run.steps[i - window]);
      const auto count = static_cast<double>(std::min<std::size_t>(i + 1, window));
      file << run.steps[i].step << ' ' << mean_max_vio(run.steps[i]) << ' ' << sum / count << '\n';
    }
    file << "\n\n";
  }
}

void write_max_vio_script(const std::vector<RunResult>& runs, const fs::path& path) {
  std::ofstream file(path);
  file << R"(set terminal pngcairo size 1100,560 font "Sans,12" noenhanced
set output "max_vio.png"
set title "How unevenly the experts are used while training" font "Sans,15"
set xlabel "optimizer step"
set ylabel "MaxVio of the step (log scale), mean of layers"
set logscale y
set yrange [*:*] noextend
set ytics (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
set key outside right top spacing 1.5 samplen 2
set border 3 lc rgb "#888888"
set tics nomirror textcolor rgb "#333333"
set grid ytics lc rgb "#dddddd" lt 1 lw 1
colours = "#7f7f7f #d95f02 #1b6ca8 #2a9d4a"
light(i) = "#c0" . substr(word(colours, i), 2, 7)
)";
  file << "plot ";
  for (std::size_t i = 0; i < runs.size(); ++i) {
    const std::string block = "\"max_vio.dat\" index " + std::to_string(i);
    const std::string colour = std::to_string(i + 1);
    file << block << " using 1:2 with lines lw 1 lc rgb light(" << colour << ") notitle, \\\n     ";
  }
  for (std::size_t i = 0; i < runs.size(); ++i) {
    file << "\"max_vio.dat\" index " << i << " using 1:3 with lines lw 2.5 lc rgb word(colours, " << i + 1 << ") title \""
         << runs[i].balancer << (i + 1 < runs.size() ? "\", \\\n     " : "\"\n");
  }
}

/// One block per run and layer: a row per domain, the last domain first because gnuplot's first row is the lowest.
void write_experts_data(const std::vector<RunResult>& runs, const fs::path& path) {
  std::ofstream file(path);
  for (const RunResult& run : runs) {
    for (std::size_t layer = 0; layer < run.domains.front().counts.size(); ++layer) {
      for (auto domain = run.domains.rbegin(); domain != run.domains.rend(); ++domain) {
        for (const double share : token_shares(domain->counts[layer], experts_per_token)) file << share << ' ';
        file << '\n';
      }
      file << "\n\n";
    }
  }
}

std::string domain_labels(const RunResult& run) {
  std::string labels;
  std::size_t row = run.domains.size();
  for (const DomainResult& domain : run.domains) {
    labels += (labels.empty() ? "\"" : ", \"") + domain.name + "\" " + std::to_string(--row);
  }
  return labels;
}

/// Layers lie side by side with one empty column between.
std::string layer_labels(std::size_t layers, std::size_t experts) {
  std::string labels;
  for (std::size_t layer = 0; layer < layers; ++layer) {
    const double middle = static_cast<double>(layer * (experts + 1)) + static_cast<double>(experts - 1) / 2;
    labels += (labels.empty() ? "\"layer " : ", \"layer ") + std::to_string(layer + 1) + ", experts 0 to " +
              std::to_string(experts - 1) + "\" " + number(middle);
  }
  return labels;
}

/// The panel of run `index`: one image for each layer.
std::string panel(const RunResult& run, std::size_t index, std::size_t layers, std::size_t experts) {
  std::string text = "set title \"" + run.balancer + ":  MaxVio global " + number(global_max_vio(run)) + ",  validation " +
                     number(validation_bits_per_byte(run)) + " bits/byte\" offset 0,-0.6\nplot ";
  for (std::size_t layer = 0; layer < layers; ++layer) {
    text += (layer > 0 ? ", " : "") + ("\"experts.dat\" index " + std::to_string(index * layers + layer)) +
            " matrix using ($1 + " + std::to_string(layer * (experts + 1)) + "):2:3 with image pixels";
  }
  return text + "\n";
}

void write_experts_script(const std::vector<RunResult>& runs, const fs::path& path) {
  const RunResult& first = runs.front();
  const std::size_t layers = first.domains.front().counts.size(), experts = first.domains.front().counts.front().size();
  const double even = static_cast<double>(experts_per_token) / static_cast<double>(experts);
  const double title = 70, gap = 62, rows = 24.0 * static_cast<double>(first.domains.size());  // pixels
  const double height = title + static_cast<double>(runs.size()) * (rows + gap);
  std::ofstream file(path);
  file << "set terminal pngcairo size 1100," << static_cast<int>(height) << " font \"Sans,12\" noenhanced\n"
       << "set output \"experts.png\"\n"
       << "set multiplot layout " << runs.size()
       << ",1 title \"Share of a domain's tokens that each expert gets (white: even use, " << number(even)
       << ")\" font \"Sans,15\" margins 0.09,0.91," << number(gap / 2 / height) << ',' << number(1 - title / height)
       << " spacing 0," << number(gap / height) << '\n'
       << "unset key\nunset border\nset tics scale 0\n"
       << "set palette defined (0 \"#1b5e9c\", 0.5 \"#ffffff\", 1 \"#b3341f\")\n"
       << "set cbrange [0:" << 2 * even << "]\n"
       << "set cbtics (\"0\" 0, \"" << number(even) << "\" " << even << ", \">" << number(2 * even) << "\" " << 2 * even
       << ")\n"
       << "set colorbox user origin 0.925,0.3 size 0.014,0.4\n"
       << "set xrange [-0.5:" << layers * (experts + 1) - 1 << " - 0.5]\nset yrange [-0.5:" << first.domains.size()
       << " - 0.5]\n"
       << "set ytics (" << domain_labels(first) << ")\nset xtics (" << layer_labels(layers, experts) << ") offset 0,0.4\n";
  for (std::size_t i = 0; i < runs.size(); ++i) file << panel(runs[i], i, layers, experts) << "unset colorbox\n";
  file << "unset multiplot\n";
}

/// Runs gnuplot inside the folder, so that the scripts go on working wherever the folder is moved. True when it succeeded.
bool run_gnuplot(const fs::path& folder, const char* script) {
  const pid_t child = fork();
  if (child == 0) {
    if (std::freopen("/dev/null", "w", stderr) == nullptr) _exit(127);  // it warns of pictures with a single point
    if (chdir(folder.c_str()) == 0) execlp("gnuplot", "gnuplot", script, static_cast<char*>(nullptr));
    _exit(127);
  }
  int status = 0;
  while (child > 0 && waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  return child > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

}  // namespace

std::string draw_pictures(const std::vector<RunResult>& runs, const fs::path& folder) {
  if (runs.empty()) return "no pictures: there is nothing to show";
  write_max_vio_data(runs, folder / "max_vio.dat");
  write_max_vio_script(runs, folder / "max_vio.gp");
  write_experts_data(runs, folder / "experts.dat");
  write_experts_script(runs, folder / "experts.gp");
  if (run_gnuplot(folder, "max_vio.gp") && run_gnuplot(folder, "experts.gp")) {
    return "pictures: " + (folder / "max_vio.png").string() + ", " + (folder / "experts.png").string();
  }
  return "no pictures: gnuplot is not installed or failed (install gnuplot-nox, then run 'gnuplot max_vio.gp' and 'gnuplot "
         "experts.gp' in " +
         folder.string() + ")";
}

}  // namespace train_moe
