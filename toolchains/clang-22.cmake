# SPDX-License-Identifier: MIT
#
# Second tier: clang 22 with libc++ 22.  toolchains/setup does not install it.

set(CMAKE_C_COMPILER clang-22)
set(CMAKE_ASM_COMPILER clang-22)
set(CMAKE_CXX_COMPILER clang++-22)
set(CMAKE_CXX_FLAGS_INIT "-stdlib=libc++")

include("${CMAKE_CURRENT_LIST_DIR}/cache.cmake")
