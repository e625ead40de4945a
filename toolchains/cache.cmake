# SPDX-License-Identifier: MIT
#
# Where toolchains/setup put what is not installed in the system.  The toolchain files include this.
#   KVM_NESTED_CACHE             the folder; the environment variable of that name goes before the default
#   <cache>/pfr/include          Boost.PFR: find_path(... boost/pfr.hpp) finds it
#   <cache>/uapi/<6.1|6.12|7>/usr/include   the kernel headers of each generation

if(NOT DEFINED KVM_NESTED_CACHE)
  if(DEFINED ENV{KVM_NESTED_CACHE})
    set(KVM_NESTED_CACHE "$ENV{KVM_NESTED_CACHE}")
  elseif(DEFINED ENV{XDG_CACHE_HOME})
    set(KVM_NESTED_CACHE "$ENV{XDG_CACHE_HOME}/kvm-nested")
  else()
    set(KVM_NESTED_CACHE "$ENV{HOME}/.cache/kvm-nested")
  endif()
  set(KVM_NESTED_CACHE "${KVM_NESTED_CACHE}" CACHE PATH "What toolchains/setup unpacked")
endif()

# A search path for find_path() alone: find_package() keeps looking where it always did.
if(NOT "${KVM_NESTED_CACHE}/pfr/include" IN_LIST CMAKE_INCLUDE_PATH)
  list(APPEND CMAKE_INCLUDE_PATH "${KVM_NESTED_CACHE}/pfr/include")
endif()
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES KVM_NESTED_CACHE)
