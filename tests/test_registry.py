"""Names of gebt's own and of plugins: files, $GEBT_PLUGINS, installed packages."""

import os
import sys

import pytest

from gebt import _registry
from gebt._registry import CRITERIA, MODELS, Registry, use_plugin

pytestmark = pytest.mark.usefixtures("own_registries")

PLUGIN = "from gebt._registry import CRITERIA\nCRITERIA.add({!r}, print, __name__)\n"


@pytest.fixture
def plugin(tmp_path):
    """Writes a plugin that registers a criterion; gives its path."""

    def write(name, file="mine.py"):
        path = tmp_path / file
        path.parent.mkdir(exist_ok=True)
        path.write_text(PLUGIN.format(name))
        return path

    return write


@pytest.fixture
def shapes(tmp_path, monkeypatch):
    """A registry with two names whose home is a module that is not imported yet."""
    text = "\n".join(
        [
            "import sys",
            "shapes = sys.shapes",
            "shapes.add('square', 4, __name__)",
            "shapes.add('circle', 0, __name__)",
        ]
    )
    (tmp_path / "home_of_shapes.py").write_text(text)
    shapes = Registry("shape", dict.fromkeys(("square", "circle"), "home_of_shapes"))
    monkeypatch.setattr(sys, "shapes", shapes, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    yield shapes
    sys.modules.pop("home_of_shapes", None)


def test_names_are_known_before_their_home_is_imported(shapes):
    assert list(shapes) == ["square", "circle"] and len(shapes) == 2
    assert shapes.check("Square") == "square"
    assert "home_of_shapes" not in sys.modules
    assert shapes.find("SQUARE") == 4
    assert "home_of_shapes" in sys.modules
    assert dict(shapes) == {"square": 4, "circle": 0}


def test_a_users_thing_comes_after_gebts_own_and_may_be_registered_again(shapes):
    shapes.add("star", 5, "mine")
    shapes.add("star", 6, "another")
    assert list(shapes) == ["square", "circle", "star"]
    assert shapes.find("Star") == 6
    with pytest.raises(ValueError, match="square, circle, star. Did you mean 'star'?"):
        shapes.check("satr")


def test_gebts_own_names_are_not_replaced(shapes):
    with pytest.raises(ValueError, match="shape 'circle' is gebt's own. Choose"):
        shapes.add("circle", 1, "mine")
    with pytest.raises(ValueError, match="the model 'gcn' is gebt's own"):
        MODELS.add("gcn", None, "mine")
    assert shapes.find("circle") == 0


@pytest.mark.parametrize("name", ["", "Star", " star", "a star", "../star", "a:b"])
def test_a_name_is_one_that_a_flag_and_a_folder_can_have(shapes, name):
    with pytest.raises(ValueError, match="name of a shape must be of lower-case"):
        shapes.add(name, 5, "mine")


def test_what_is_not_there_is_a_key_error_to_a_mapping(shapes):
    assert "star" not in shapes
    assert shapes.get("star") is None


def test_a_file_registers_what_it_likes_here_and_in_workers(plugin, monkeypatch):
    path = plugin("mine")
    monkeypatch.chdir(path.parent)
    use_plugin(path.relative_to(path.parent))
    assert CRITERIA["mine"] is print
    assert os.environ["GEBT_PLUGINS"] == str(path)
    use_plugin(path)
    assert os.environ["GEBT_PLUGINS"] == str(path)


def test_files_of_one_name_are_two_plugins(plugin):
    for name in ("one", "two"):
        use_plugin(plugin(name, f"{name}/mine.py"))
    assert {"one", "two"} < set(CRITERIA)
    assert os.environ["GEBT_PLUGINS"].count("mine.py") == 2


def test_a_file_runs_once(plugin, tmp_path):
    path = plugin("mine")
    path.write_text(path.read_text() + "open(__file__ + '.ran', 'x').close()\n")
    for _ in range(2):
        use_plugin(path)
    assert (tmp_path / "mine.py.ran").exists()


def test_a_file_imports_what_lies_beside_it_and_shadows_nothing(plugin, tmp_path):
    path = plugin("mine")
    path.write_text("from beside_mine import NAME\n" + PLUGIN.replace("{!r}", "NAME"))
    (tmp_path / "beside_mine.py").write_text("import json\nNAME = json.dumps(1)\n")
    (tmp_path / "json.py").write_text("1 / 0")
    use_plugin(path)
    assert "1" in CRITERIA
    del sys.modules["beside_mine"]


def test_files_of_the_variable_are_imported_for_unknown_names_alone(
    plugin, monkeypatch
):
    monkeypatch.setenv("GEBT_PLUGINS", os.pathsep.join(["absent.py", ""]))
    assert CRITERIA.check("Random") == "random"
    with pytest.raises(ValueError, match="absent.py failed: FileNotFoundError"):
        CRITERIA.check("mine")
    monkeypatch.setenv("GEBT_PLUGINS", str(plugin("mine")))
    assert CRITERIA.find("Mine") is print


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import gebt\nx = 1 / 0\n", "mine.py, line 2, failed: ZeroDivisionError: "),
        ("def f(:\n", "mine.py failed: SyntaxError: .*line 1"),
        ("import nothing_there\n", "line 1, failed: ModuleNotFoundError: .*there"),
        ("import sys\nsys.exit('usage')\n", "line 2, failed: SystemExit: usage"),
        (PLUGIN.format("learned"), "failed: ValueError: the criterion 'learned' is"),
    ],
)
def test_a_file_that_fails_is_said_to_and_is_no_plugin(tmp_path, text, words):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(ValueError, match=words):
        use_plugin(path)
    assert os.environ["GEBT_PLUGINS"] == ""
    path.write_text(PLUGIN.format("mended"))
    use_plugin(path)
    assert "mended" in CRITERIA


def test_a_file_that_is_no_plugin_is_refused_or_told_of(tmp_path):
    with pytest.raises(FileNotFoundError, match="no plugin .*absent.py"):
        use_plugin(tmp_path / "absent.py")
    (tmp_path / "notes.txt").write_text("x = 1")
    with pytest.raises(ValueError, match="notes.txt is not a Python file"):
        use_plugin(tmp_path / "notes.txt")
    # That it is the first to import a home of gebt's own makes no difference.
    (tmp_path / "idle.py").write_text("import gebt.datasets.digits\n")
    with pytest.warns(UserWarning, match="idle.py registers nothing"):
        use_plugin(tmp_path / "idle.py")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Installs a package of one module with an entry point, without pip."""

    def install(name, text):
        site = tmp_path / "site"
        info = site / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (site / f"{name}.py").write_text(text)
        (info / "METADATA").write_text(f"Name: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[gebt.plugins]\nthing = {name}\n")
        monkeypatch.syspath_prepend(site)

    return install


def test_an_installed_package_registers_by_its_entry_point(package):
    package("gebt_more", PLUGIN.format("more"))
    assert "more" not in CRITERIA
    assert CRITERIA.check("learned") == "learned"
    assert "gebt_more" not in sys.modules, "known names import no package"
    assert CRITERIA.find("MORE") is print
    sys.modules.pop("gebt_more")


def test_a_package_that_fails_is_told_of_and_stops_nobody(package, plugin, monkeypatch):
    package("gebt_broken", "1 / 0")
    monkeypatch.setenv("GEBT_PLUGINS", str(plugin("mine")))
    words = r"the plugin thing \(gebt_broken\) failed: ZeroDivisionError"
    with pytest.warns(UserWarning, match=words):
        assert CRITERIA.check("mine") == "mine"


def test_sizes_of_synthetic_graphs_are_let_through():
    assert _registry.check_dataset("synthetic:N=9") == "synthetic:N=9"
    assert _registry.check_dataset("SYNTHETIC") == "synthetic"
    assert _registry.check_dataset("Tolokers:split=3") == "tolokers:split=3"
    with pytest.raises(ValueError, match="no dataset 'cora:N=9'"):
        _registry.check_dataset("cora:N=9")
