# SPDX-License-Identifier: Apache-2.0
#
# What `cmake --install` leaves behind: header, plugin, moectl, profiles, manual pages, a CMake package and a pkg-config file.

file(GLOB moe_public_headers CONFIGURE_DEPENDS "${moe_abi_dir}/*.h")
install(FILES ${moe_public_headers} DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
install(TARGETS moe_plugin LIBRARY DESTINATION "${moe_install_plugin_dir}")
install(TARGETS moe_loader moe_loader_shared
  ARCHIVE DESTINATION "${CMAKE_INSTALL_LIBDIR}" LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}")
install(TARGETS moectl moe-canary RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}")
install(FILES ${moe_profile_files} DESTINATION "${CMAKE_INSTALL_DATADIR}/moe-plugin/profiles")
install(FILES plugin/moe-dispatch-1.schema.json DESTINATION "${CMAKE_INSTALL_DATADIR}/moe-plugin")
include(moe_pages)

set(moe_package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/MoePlugin")
set(moe_installed_plugin "${moe_install_plugin_dir}/libmoe_plugin.so")
configure_package_config_file(
  "${PROJECT_SOURCE_DIR}/plugin/package/MoePluginConfig.cmake.in" "${PROJECT_BINARY_DIR}/package/MoePluginConfig.cmake"
  INSTALL_DESTINATION "${moe_package_dir}"
  PATH_VARS CMAKE_INSTALL_INCLUDEDIR moe_installed_plugin
  NO_CHECK_REQUIRED_COMPONENTS_MACRO)
write_basic_package_version_file("${PROJECT_BINARY_DIR}/package/MoePluginConfigVersion.cmake"
  COMPATIBILITY SameMinorVersion) # before 1.0 each minor version is a contract of its own
install(FILES
  "${PROJECT_BINARY_DIR}/package/MoePluginConfig.cmake" "${PROJECT_BINARY_DIR}/package/MoePluginConfigVersion.cmake"
  DESTINATION "${moe_package_dir}")

set(moe_pkgconfig_dir "${CMAKE_INSTALL_LIBDIR}/pkgconfig")
file(RELATIVE_PATH moe_prefix_from_pkgconfig "${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig" "${CMAKE_INSTALL_PREFIX}")
string(REGEX REPLACE "/$" "" moe_prefix_from_pkgconfig "${moe_prefix_from_pkgconfig}")
configure_file("${PROJECT_SOURCE_DIR}/plugin/package/moe-plugin.pc.in" "${PROJECT_BINARY_DIR}/package/moe-plugin.pc" @ONLY)
install(FILES "${PROJECT_BINARY_DIR}/package/moe-plugin.pc" DESTINATION "${moe_pkgconfig_dir}")
