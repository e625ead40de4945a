# SPDX-License-Identifier: MIT
#
# Where toolchains/setup put what is not installed in the system, and where tests/lab/setup did.  The toolchain files include this.
#   KVM_NESTED_CACHE             the folder, as cache.sh beside this finds it, unless -D says which
#   <cache>/pfr/include          Boost.PFR: find_path(... boost/pfr.hpp) finds it
#   <cache>/uapi/<6.1|6.12|7>/usr/include   the kernel headers of each generation

if(NOT DEFINED KVM_NESTED_CACHE)
  execute_process(
    COMMAND bash -c "source \"$0\" && printf %s \"$cache\"" "${CMAKE_CURRENT_LIST_DIR}/cache.sh"
    OUTPUT_VARIABLE KVM_NESTED_CACHE COMMAND_ERROR_IS_FATAL ANY)
  set(KVM_NESTED_CACHE "${KVM_NESTED_CACHE}" CACHE PATH "What toolchains/setup unpacked")
endif()

# A search path for find_path() alone: find_package() keeps looking where it always did.
if(NOT "${KVM_NESTED_CACHE}/pfr/include" IN_LIST CMAKE_INCLUDE_PATH)
  list(APPEND CMAKE_INCLUDE_PATH "${KVM_NESTED_CACHE}/pfr/include")
endif()
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES KVM_NESTED_CACHE)
