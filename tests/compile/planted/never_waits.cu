// A kernel that may run before what the one before it wrote is there.
namespace moe_balance {

__global__ void moe_balance_never_waits(int* to) {
  *to = 1;
}

}  // namespace moe_balance
