# SPDX-License-Identifier: MIT
#
# The reference toolchain: clang 19 with libc++ 19, as toolchains/setup installs it.
#   cmake -S . -B build -G Ninja --toolchain toolchains/clang-19.cmake

set(CMAKE_C_COMPILER clang-19)
set(CMAKE_ASM_COMPILER clang-19)
set(CMAKE_CXX_COMPILER clang++-19)

# libstdc++ of Debian 12 has no <format>; a build that mixes the two libraries would not link anyway.
set(CMAKE_CXX_FLAGS_INIT "-stdlib=libc++")
set(CMAKE_EXE_LINKER_FLAGS_INIT "-fuse-ld=lld")
set(CMAKE_SHARED_LINKER_FLAGS_INIT "-fuse-ld=lld")
set(CMAKE_MODULE_LINKER_FLAGS_INIT "-fuse-ld=lld")

include("${CMAKE_CURRENT_LIST_DIR}/cache.cmake")
