# SPDX-License-Identifier: MIT
#
# cmake -DBUILD=... -DSOURCE=... -DCASE=... -DTEXT=... -P compile_again.cmake
# Repeats the command with which BUILD compiled SOURCE, with the macro CASE, and expects a failure whose output matches
# TEXT.  Writes nothing into the build, so that any number of these run at once.  That SOURCE compiles without the macro
# is the build's to show.
cmake_minimum_required(VERSION 3.31)

file(READ "${BUILD}/compile_commands.json" commands)
string(JSON count LENGTH "${commands}")
math(EXPR last "${count} - 1")
foreach(i RANGE ${last})
  string(JSON file GET "${commands}" ${i} file)
  if(file STREQUAL SOURCE)
    string(JSON command GET "${commands}" ${i} command)
    string(JSON directory GET "${commands}" ${i} directory)
    break()
  endif()
endforeach()
if(NOT DEFINED command)
  message(FATAL_ERROR "${SOURCE} is not in ${BUILD}/compile_commands.json")
endif()
separate_arguments(command UNIX_COMMAND "${command}")

execute_process(COMMAND ${command} -fsyntax-only -D${CASE} WORKING_DIRECTORY "${directory}"
                RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
if(result EQUAL 0)
  message(FATAL_ERROR "with -D${CASE} it compiles, and must not")
endif()
if(NOT output MATCHES "${TEXT}")
  message(FATAL_ERROR "with -D${CASE} it fails for another reason than expected.\nexpected: ${TEXT}\noutput:\n${output}")
endif()
