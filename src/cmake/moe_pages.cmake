# SPDX-License-Identifier: Apache-2.0
#
# Manual pages of moectl, printed by moectl itself from the tables that its options are read by, and its completion scripts.

set(moe_man_dir "${PROJECT_BINARY_DIR}/man")
add_custom_command(OUTPUT "${moe_man_dir}/moectl.1"
  COMMAND "${CMAKE_COMMAND}" -E make_directory "${moe_man_dir}"
  COMMAND sh -ec "for command in $(\"$0\" --help=words); do \"$0\" \"$command\" --help=man >\"$1/moectl-$command.1\"; done; \"$0\" --help=man >\"$1/moectl.1\""
    "$<TARGET_FILE:moectl>" "${moe_man_dir}"
  DEPENDS moectl
  COMMENT "Printing the manual pages of moectl" VERBATIM)
add_custom_target(moe_man_pages ALL DEPENDS "${moe_man_dir}/moectl.1")

install(DIRECTORY "${moe_man_dir}/" DESTINATION "${CMAKE_INSTALL_MANDIR}/man1" FILES_MATCHING PATTERN "*.1")
install(FILES src/cli/completion/moectl.bash DESTINATION "${CMAKE_INSTALL_DATADIR}/bash-completion/completions" RENAME moectl)
install(FILES src/cli/completion/_moectl DESTINATION "${CMAKE_INSTALL_DATADIR}/zsh/site-functions")
install(FILES src/cli/completion/moectl.fish DESTINATION "${CMAKE_INSTALL_DATADIR}/fish/vendor_completions.d")
