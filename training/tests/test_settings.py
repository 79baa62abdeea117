import pytest
import yaml

from training.settings import SettingsError, from_dict, load_recipe, recipe_names


@pytest.mark.parametrize("name", recipe_names())
def test_recipes_load_and_come_back_from_yaml(name):
    settings = load_recipe(name)
    assert from_dict(yaml.safe_load(yaml.safe_dump(settings.to_dict()))) == settings


def test_any_field_can_be_set():
    settings = load_recipe(
        "flagship",
        ["optimizer.lr=3e-4", "model.widths=[8, 16]", "compile=never", "seed=7", "data.train_split=balanced"],
    )
    assert settings.optimizer.lr == 3e-4
    assert settings.model.widths == (8, 16)
    assert (settings.compile, settings.seed, settings.data.train_split) == ("never", 7, "balanced")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.rl=1", "unknown setting 'optimizer.rl'; did you mean 'optimizer.lr'?"),
        ("lr=1", "unknown setting 'lr'; did you mean 'optimizer.lr'?"),
        ("schedule.epoch=3", "did you mean 'schedule.epochs'?"),
        ("optimizer.lr=fast", "'optimizer.lr' cannot be 'fast': input should be a valid number"),
        ("schedule.epochs=-1", "greater than 0"),
        ("schedule.batch_size=2.5", "'schedule.batch_size' cannot be 2.5"),
        ("model.name=resent", "should be 'resnet'"),
        ("model.convolutions=[{kernel: 2}]", "'model.convolutions.0.width' cannot be .*: field required"),
        ("optimizer.lr", "takes section.field=value"),
        ("seed.lr=1", "'seed' cannot be"),
        ("optimizer.lr.x=1", "has no fields|cannot be"),
        ("optimizer.lr=[", "not valid YAML"),
    ],
)
def test_what_does_not_fit_is_refused_with_help(override, message):
    with pytest.raises(SettingsError, match=message.replace("?", r"\?")):
        load_recipe("flagship", [override])


def test_digits_as_classes_stay_text():
    assert load_recipe("system-d", ["data.classes=0123456789"]).data.classes == "0123456789"


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(SettingsError, match="no recipe 'flagshp'; did you mean 'flagship'"):
        load_recipe("flagshp")


def test_a_recipe_that_is_no_mapping(tmp_path):
    recipe = tmp_path / "odd.yaml"
    recipe.write_text("- 1\n")
    with pytest.raises(SettingsError, match="must map sections to fields"):
        load_recipe(str(recipe))
