// Runs every recorded case through the CPU engine and, where a GPU is there, through CUDA too.
//   golden_test [folder]     else the folder in MOE_BALANCE_GOLDEN_DIR, else tests/golden
// For each case: name [place] PASSED | FAILED (first difference, or why it is not offered). Closes with 'N passed, M failed';
// exit status 1 when anything failed or nothing ran. Build with MOE_BALANCE_TEST_CUDA defined and golden_*.cu linked for CUDA.
#include "engine_host.hpp"
#include "golden_cases.hpp"
#include "golden_router.hpp"

#include <memory>

namespace golden {

extern template Answer ask_softmax(const testing::HostEngine&, const Task&);
extern template Answer ask_softmax_over_selected(const testing::HostEngine&, const Task&);
extern template Answer ask_sigmoid(const testing::HostEngine&, const Task&);
extern template Answer ask_sqrt_softplus(const testing::HostEngine&, const Task&);
extern template SinkhornAnswer sinkhorn_on(const testing::HostEngine&, const SinkhornTask&);

#if defined(MOE_BALANCE_TEST_CUDA)
std::unique_ptr<Subject> cuda_subject(std::string& why_not);
#else
std::unique_ptr<Subject> cuda_subject(std::string& why_not) {
  why_not = "built without CUDA";
  return nullptr;
}
#endif

#if defined(MOE_BALANCE_GOLDEN_DIR)
constexpr const char* compiled_in_folder = MOE_BALANCE_GOLDEN_DIR;
#else
constexpr const char* compiled_in_folder = nullptr;
#endif

}  // namespace golden

int main(int argc, char** argv) {
  const std::filesystem::path folder = golden::cases_folder(argc, argv, golden::compiled_in_folder);
  golden::Tally tally;
  golden::RouterSubject<testing::HostEngine> host(testing::HostEngine{.threads = 2});
  golden::run_folder(host, folder, tally);
  std::string why_not;
  if (const std::unique_ptr<golden::Subject> device = golden::cuda_subject(why_not)) {
    golden::run_folder(*device, folder, tally);
  } else {
    std::printf("CUDA engine SKIPPED (%s)\n", why_not.c_str());
  }
  return golden::close(tally, folder);
}
