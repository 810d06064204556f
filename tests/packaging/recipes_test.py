#!/usr/bin/env python3
"""recipes_test.py ROOT VERSION: the Conan recipe and the vcpkg port say what the library says of itself. Neither tool is needed: the recipe
runs against stand-ins for what it imports. conan.sh runs it with Conan, vcpkg_port.cmake runs the port's portfile."""

import json
import pathlib
import re
import sys
import tempfile
import types

root, version = pathlib.Path(sys.argv[1]), sys.argv[2]


def check(condition, message):
    if not condition:
        sys.exit(f"FAILED: {message}")


def stand_ins(copied):
    """Modules named conan.* with the few names that the recipe imports."""
    names = ["conan", "conan.tools", "conan.tools.build", "conan.tools.files", "conan.tools.layout"]
    modules = {name: types.ModuleType(name) for name in names}
    modules["conan"].ConanFile = object
    modules["conan.tools.build"].check_min_cppstd = lambda recipe, standard: check(standard == 20, "the recipe asks for C++20")
    modules["conan.tools.layout"].basic_layout = lambda recipe, **options: None
    modules["conan.tools.files"].copy = lambda recipe, pattern, source, target: copied.append((pattern, source, target))
    sys.modules.update(modules)


class CppInfo:
    def __init__(self):
        self.properties = {}

    def set_property(self, name, value):
        self.properties[name] = value


def check_conan():
    copied = []
    stand_ins(copied)
    path = root / "cmake" / "packaging" / "conan" / "conanfile.py"
    text = path.read_text(encoding="utf-8")
    names = {}
    exec(compile(text, str(path), "exec"), names)  # the recipe, and nothing else
    recipe = names["MoeBalance"]()
    recipe.recipe_folder = str(path.parent)
    recipe.set_version()
    check(recipe.version == version, f"conanfile.py has version {recipe.version}, the library {version}")
    check(re.search(rf'requires = "moe_balance/{re.escape(version)}"', text), "conanfile.py's example requires this version")
    recipe.export_sources_folder = "sources"
    recipe.export_sources()
    for pattern, source, _ in copied:
        check(list(pathlib.Path(source).glob(pattern)), f"conanfile.py exports {pattern}, which is not there")
    exported = {pattern for pattern, _, _ in copied}
    copied.clear()
    with tempfile.TemporaryDirectory() as package:
        recipe.source_folder, recipe.package_folder = str(root), package
        recipe.validate()
        recipe.package()
    check({pattern for pattern, _, _ in copied} == exported == {"LICENSE", "include/*"}, "conanfile.py packages the headers and the license")
    recipe.settings = types.SimpleNamespace(os="Linux")
    recipe.cpp_info = CppInfo()
    recipe.package_info()
    check(recipe.cpp_info.properties["cmake_target_name"] == "moe_balance::moe_balance", "conanfile.py's target")


# What vcpkg documents of a manifest: its fields, and those of a dependency.
MANIFEST_FIELDS = {"$comment", "$schema", "name", "version", "version-semver", "version-date", "version-string", "port-version", "maintainers",
                   "contacts", "summary", "description", "homepage", "documentation", "license", "supports", "dependencies", "features",
                   "default-features", "overrides", "builtin-baseline", "configuration", "vcpkg-configuration"}
DEPENDENCY_FIELDS = {"name", "default-features", "features", "host", "platform", "version>="}
# Which helper port has each function that a portfile may call; None: part of vcpkg.
FUNCTIONS = {"vcpkg_cmake_configure": "vcpkg-cmake", "vcpkg_cmake_install": "vcpkg-cmake", "vcpkg_cmake_config_fixup": "vcpkg-cmake-config",
             "vcpkg_fixup_pkgconfig": None, "vcpkg_install_copyright": None}


def check_manifest(manifest, folder):
    check(manifest["name"] == folder, "vcpkg.json's name is its folder's")
    check(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", manifest["name"]), "vcpkg.json's name is of lower-case letters, digits and hyphens")
    check(not manifest.keys() - MANIFEST_FIELDS, f"vcpkg.json has fields that vcpkg does not know: {manifest.keys() - MANIFEST_FIELDS}")
    versions = [field for field in ("version", "version-semver", "version-date", "version-string") if field in manifest]
    check(versions == ["version-semver"], f"vcpkg.json has one version, a semantic one, not {versions}")
    check(manifest["version-semver"] == version, f"vcpkg.json has version {manifest['version-semver']}, the library {version}")
    check(manifest["license"] == "Apache-2.0" and "Apache License" in (root / "LICENSE").read_text(encoding="utf-8"), "vcpkg.json's license")
    for dependency in manifest["dependencies"]:
        check(not dependency.keys() - DEPENDENCY_FIELDS, f"vcpkg.json has a dependency with unknown fields: {dependency}")


def check_vcpkg():
    port = root / "cmake" / "packaging" / "vcpkg" / "moe-balance"
    manifest = json.loads((port / "vcpkg.json").read_text(encoding="utf-8"))
    check_manifest(manifest, port.name)
    portfile = (port / "portfile.cmake").read_text(encoding="utf-8")
    calls = set(re.findall(r"^(vcpkg_\w+)\(", portfile, re.MULTILINE))
    check(not calls - FUNCTIONS.keys(), f"portfile.cmake calls what this test does not know: {calls - FUNCTIONS.keys()}")
    helpers = {FUNCTIONS[call] for call in calls} - {None}
    hosts = {dependency["name"] for dependency in manifest["dependencies"] if dependency.get("host")}
    check(helpers == hosts, f"portfile.cmake needs the host dependencies {helpers}, vcpkg.json has {hosts}")
    options = re.findall(r"-D(MOE_BALANCE_\w+)=", portfile)
    build = (root / "CMakeLists.txt").read_text(encoding="utf-8")
    check(len(options) == 4, "portfile.cmake turns off tests, benchmarks, examples and CUDA")
    for option in options:
        check(re.search(rf"^(option|set)\({option} ", build, re.MULTILINE), f"portfile.cmake sets {option}, which CMakeLists.txt does not have")


check_conan()
check_vcpkg()
print(f"cmake/packaging agrees with version {version}")
