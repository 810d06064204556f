// The one file that compiles the routers which router.hpp declares.
#include "router.hpp"

template class mb::CompiledRouter<Published>;
template class mb::CompiledRouter<Inference>;
