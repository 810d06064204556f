// The one place where the version stands; CMakeLists.txt reads it from here.
#pragma once

/// Before 1.0 a new minor version may ask its users for changes.
#define MOEB_VERSION_MAJOR 0
/// See MOEB_VERSION_MAJOR.
#define MOEB_VERSION_MINOR 1
/// A new patch version never does.
#define MOEB_VERSION_PATCH 0
