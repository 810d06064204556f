// Which matrix products torch uses: the distribution's torch calls whatever BLAS is installed.
#pragma once

namespace train_moe {

/// Call before torch is used. Gives every caller one thread (runs are trained side by side instead) and the best kernels: where
/// OpenBLAS does not know the processor it falls back to its oldest ones, several times slower. Only an environment variable
/// read when it is loaded corrects that, so the program then starts itself again. Says on stderr when OpenBLAS is not in use.
void prepare_blas(char** argv);

}  // namespace train_moe
