# SPDX-License-Identifier: MIT
#
# cmake -DNM=... -DWITHOUT=OBJECTS -DWITH=OBJECTS -P free_of_format.cmake
# Looks for symbols of std::format, defined or wanted: there must be none in WITHOUT, and some in WITH.
cmake_minimum_required(VERSION 3.31)

foreach(kind WITHOUT WITH)
  execute_process(COMMAND ${NM} -C ${${kind}} RESULT_VARIABLE result OUTPUT_VARIABLE symbols ERROR_VARIABLE error)
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "${NM} failed: ${error}")
  endif()
  string(REGEX MATCHALL "[^\n]*(basic_format|__format|vformat)[^\n]*" found_${kind} "${symbols}")
endforeach()
if(found_WITHOUT)
  list(JOIN found_WITHOUT "\n" found)
  message(FATAL_ERROR "an object file that only imports has symbols of <format>:\n${found}")
endif()
if(NOT found_WITH)
  message(FATAL_ERROR "${WITH} formats and has no symbol of <format>: this test looks for the wrong ones")
endif()
