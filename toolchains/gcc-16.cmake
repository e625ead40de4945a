# SPDX-License-Identifier: MIT
#
# Second tier: GCC 16 with its libstdc++.  toolchains/setup does not install it.

set(CMAKE_C_COMPILER gcc-16)
set(CMAKE_ASM_COMPILER gcc-16)
set(CMAKE_CXX_COMPILER g++-16)

include("${CMAKE_CURRENT_LIST_DIR}/cache.cmake")
