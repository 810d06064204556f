// The one place where the version stands; CMakeLists.txt reads it from here.
#pragma once

#define MOEB_VERSION_MAJOR 0
#define MOEB_VERSION_MINOR 1
#define MOEB_VERSION_PATCH 0
