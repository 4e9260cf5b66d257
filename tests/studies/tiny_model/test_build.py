"""The zoo's builder: every stage for seconds, started again, changed, and what is too large to ship."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import QwenImage21Pipeline
from safetensors.torch import load_file, save_file
from transformers import Qwen3VLForConditionalGeneration

from studies.tiny_model import assemble, judge, shipped, vae
from studies.tiny_model import build as building
from studies.tiny_model.stages import Stage
from workbench.backbones import families, lora_files, roles
from workbench.backbones.load import load_specialist, single_role
from workbench.backbones.qwen_image_21.processor import load_processor
from workbench.backbones.qwen_image_21.transformer import SplitTransformer
from workbench.backbones.roles import TEACHER
from workbench.common.errors import UserError
from workbench.evaluation.judges import networks
from workbench.recipe import reading
from workbench.recipe.config import Model, Recipe

PLAN = "studies/tiny_model/smoke.yaml"


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> building.Plan:
    return building.read([PLAN, f"folder={tmp_path_factory.mktemp('zoo')}"])


@pytest.fixture(scope="module")
def built(plan: building.Plan) -> dict[str, building.Report]:
    return building.build(plan)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")


def test_every_stage_leaves_what_ships(plan: building.Plan, built: dict[str, building.Report]) -> None:
    assert list(built) == [
        "judge",
        "second_judge",
        "vae",
        "start",
        "teacher",
        "base",
        "portrait",
        "portrait-best",
        "assets",
    ]
    assets = Path(plan.folder) / "assets"
    for part in ("transformer", "vae", "text_encoder"):
        (file,) = (assets / "tiny" / part).glob("*.safetensors")
        assert {tensor.dtype for tensor in load_file(file).values()} == {torch.bfloat16}
    encoder = Qwen3VLForConditionalGeneration.from_pretrained(assets / "tiny" / "text_encoder")
    assert encoder.dtype == torch.float32, "as diffusers loads the other parts when no dtype is asked for"
    start, trained = weights(Path(plan.folder) / "start"), weights(assets / "tiny")
    assert any(not torch.equal(start[name], trained[name]) for name in start)
    autoencoder = load_file(Path(plan.folder) / "vae" / vae.WEIGHTS_FILE)
    shipped_one = load_file(assets / "tiny" / "vae" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(autoencoder[name], shipped_one[name]) for name in autoencoder)
    assert networks.load(assets / "judge").config.resolution == 64
    assert networks.load(assets / "second_judge").config.architecture == "transformer"
    ships = lora_files.read(assets / "tiny" / "portrait.safetensors").values()
    a_rank = sum(sum(layer.shape) for layer in ships)
    assert a_rank < sum(layer.down.numel() + layer.up.numel() for layer in ships) <= 3 * a_rank
    assert 0 < built["assets"]["kept_portrait"] < 1
    card = (assets / "tiny" / "README.md").read_text()
    number = sum(tensor.numel() for tensor in weights(assets / "tiny").values())
    assert f"| transformer | {number / 1e6:.1f} M |" in card and "| teacher |" in card


def test_what_ships_is_a_stock_pipeline_and_its_specialist_one_of_diffusers(
    plan: building.Plan, built: dict[str, building.Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The adapter adds the same to the teacher through diffusers, and as a specialist named `tiny/portrait`."""
    folder = Path(plan.folder) / "assets" / "tiny"
    monkeypatch.setitem(families.SHIPPED, "tiny", folder)
    assert families.resolve("tiny") == folder
    adapter = load_specialist(Recipe(), "tiny/portrait.safetensors")
    base = families.load("tiny").transformer
    before = {name: value.clone() for name, value in base.state_dict().items()}
    denoiser = roles.build(SplitTransformer, base, Model(), specialists={"portrait": adapter})
    merged = roles.merged_state(denoiser, f"{TEACHER}_portrait")

    stock = QwenImage21Pipeline.from_pretrained(folder, processor=load_processor(folder / "processor"))
    stock.load_lora_weights(folder / "portrait.safetensors")
    stock.fuse_lora()
    stock.unload_lora_weights()
    fused = stock.transformer.state_dict()
    assert all(torch.allclose(merged[name], fused[name], atol=1e-6) for name in fused)
    assert any(not torch.equal(merged[name], before[name]) for name in before)


def test_what_is_done_is_left_alone_and_what_it_builds_on_counts(
    plan: building.Plan, built: dict[str, building.Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise AssertionError("this stage is done")

    for module, name in ((vae, "train"), (judge, "run"), (building, "pretrain"), (building, "assemble")):
        monkeypatch.setattr(module, name, refused)
    assert building.build(plan) == built
    longer = replace(plan, vae=replace(plan.vae, steps=3))
    done = {step.name: step.stage.done for step in building.steps_of(longer)}
    assert {name for name, is_done in done.items() if is_done} == {"judge", "second_judge"}
    assert {*done} == {*built}
    machine = replace(plan, vae=replace(plan.vae, workers=7), judge=replace(plan.judge, workers=7))
    assert all(step.stage.done for step in building.steps_of(machine))
    teacher = next(step for step in building.steps_of(longer) if step.name == "teacher")
    with pytest.raises(UserError, match="trained under other settings"):
        building.begin(teacher)
    assert all(step.stage.done for step in building.steps_of(plan)), "a refusal changes nothing"


def test_a_teacher_goes_on_where_it_was_interrupted(
    plan: building.Plan, built: dict[str, building.Report], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workbench.modules.pretrainer import Pretrainer

    step = Pretrainer.training_step

    def dies_at_the_second(self: Pretrainer, data: object, index: int) -> None:
        if self.num_updates == 1:
            raise RuntimeError("killed")
        step(self, data, index)  # type: ignore[arg-type]

    words = [*plan.teacher.overrides, "trainer.checkpoint_every=1", f"trainer.folder={tmp_path / 'run'}"]
    recipe = reading.load(plan.teacher.recipe, [*words, f"model.folder={Path(plan.folder) / 'start'}"])
    monkeypatch.setattr(Pretrainer, "training_step", dies_at_the_second)
    with pytest.raises(RuntimeError, match="killed"):
        building.pretrain(recipe, *building.world_sources(recipe, plan.teacher.fresh_every))
    monkeypatch.setattr(Pretrainer, "training_step", step)
    resumed = weights(building.pretrain(recipe, *building.world_sources(recipe, plan.teacher.fresh_every)))
    straight = weights(Path(plan.folder) / "teacher" / "teacher")
    assert all(torch.equal(resumed[name], straight[name]) for name in straight)


def test_stages_go_on_from_shipped_weights_some_of_them_alone(
    plan: building.Plan, built: dict[str, building.Report], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The teacher starts at the given pipeline, judges at the given ones; neither autoencoder nor start is made."""
    assets = Path(plan.folder) / "assets"
    going_on = replace(plan, folder=str(tmp_path), given=str(assets))
    names = [step.name for step in building.steps_of(going_on)]
    assert names == ["judge", "second_judge", "teacher", "base", "portrait", "portrait-best", "assets"]
    begun: dict[str, str] = {}

    def pretrained(recipe: Recipe, *_: object) -> None:
        folder = Path(recipe.trainer.folder)
        begun[folder.name] = recipe.model.folder
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text('{"loss/total": 1.0}\n')

    def judged(folder: Path, options: judge.Options) -> dict[str, object]:
        begun[folder.name] = options.init
        return {}

    monkeypatch.setattr(building, "pretrain", pretrained)
    monkeypatch.setattr(building, "world_sources", lambda *_: ())
    monkeypatch.setattr(judge, "run", judged)
    monkeypatch.setattr(judge, "brief", lambda found: found)
    building.build(replace(going_on, only=["teacher", "base"]))
    assert begun == {"teacher": str(assets / "tiny"), "base": str(tmp_path / "teacher" / "teacher")}
    building.build(replace(going_on, only=["second_judge"]))
    assert begun["second_judge"] == str(assets / "second_judge") and "judge" not in begun
    done = {step.name for step in building.steps_of(going_on) if step.stage.done}
    assert done == {"teacher", "base", "second_judge"}, "what was built alone is done in the whole"


@pytest.mark.parametrize(("name", "millions"), [("small", (1.8, 2.2)), ("tiny", (7.3, 7.5)), ("large", (54.0, 66.0))])
def test_proxies_have_transformers_of_some_2_and_60_million_parameters(
    name: str, millions: tuple[float, float]
) -> None:
    with torch.device("meta"):
        network = assemble.transformer(assemble.SIZES[name])
    assert millions[0] <= sum(tensor.numel() for tensor in network.parameters()) / 1e6 <= millions[1]


@pytest.mark.parametrize("name", ["small", "large"])
def test_a_proxy_has_the_shipped_autoencoder_and_all_stages_of_its_own(name: str, tmp_path: Path) -> None:
    proxy = building.read([f"studies/tiny_model/proxy_{name}.yaml", f"folder={tmp_path}"])
    stages = [step.name for step in building.steps_of(proxy)]
    assert stages == ["start", "teacher", "base", "portrait", "text", "editing"] and proxy.sizes == name


def test_a_start_takes_an_autoencoder_that_exists(
    plan: building.Plan, built: dict[str, building.Report], tmp_path: Path
) -> None:
    trained = Path(plan.folder) / "vae"
    building.build(replace(plan, folder=str(tmp_path), autoencoder=str(trained), only=["start"]))
    put = tmp_path / "start" / "vae" / vae.WEIGHTS_FILE
    assert put.read_bytes() == (trained / vae.WEIGHTS_FILE).read_bytes() and not (tmp_path / "vae").exists()


def test_a_stage_keeps_its_progress_under_its_own_settings(tmp_path: Path) -> None:
    Stage(tmp_path, {"steps": 3}).write(2, 1.5, done=False)
    same, other = Stage(tmp_path, {"steps": 3}), Stage(tmp_path, {"steps": 4})
    assert (same.steps, same.wall_s, same.done, same.is_other) == (2, 1.5, False, False)
    assert (other.steps, other.wall_s, other.done, other.is_other) == (0, 0.0, False, True)


def test_what_is_too_large_does_not_ship(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(bytes(600))
    (tmp_path / "b").write_bytes(bytes(600))
    shipped.check_sizes(tmp_path)
    monkeypatch.setattr(shipped, "MAX_BYTES", 1000)
    with pytest.raises(UserError, match="1,200 bytes: at most 1,000 in all"):
        shipped.check_sizes(tmp_path)
    monkeypatch.setattr(shipped, "MAX_BYTES_A_FILE", 500)
    with pytest.raises(UserError, match="600 bytes: at most 500 a file"):
        shipped.check_sizes(tmp_path)


def test_halving_keeps_integers_and_header(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"w": torch.rand(3), "n": torch.arange(3)}, path, metadata={"format": "pt"})
    shipped.to_bfloat16(path)
    state = load_file(path)
    assert state["w"].dtype == torch.bfloat16 and state["n"].dtype == torch.int64


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([PLAN, "best.text={answers: 8}"], "best.text: there is no such specialist"),
        ([PLAN, "best.portrait.answers=1"], "a choice is of two at least"),
        ([PLAN, "ships.portrait.of=[portrat]"], "name stages of portrait, portrait-best"),
        ([PLAN, "ships.portrait.rank=0"], "ships.portrait.rank=0: at least 1"),
        (["no.yaml"], "no plan at no.yaml"),
        ([PLAN, "autoencoder=nowhere"], "autoencoder: no config.json in nowhere"),
        ([PLAN, "given=workbench/assets", "autoencoder=workbench/assets/tiny/vae"], "leave out autoencoder"),
        ([PLAN, "only=[base,bse]"], "only: no stage bse; there are judge"),
        ([PLAN, "teacher.chunks_kept=0"], "teacher.chunks_kept=0: at least the newest chunk"),
        ([PLAN, "vae.step=3"], "smoke.yaml: Key 'step' not in 'Options'"),
        ([PLAN, "specialists={judge: {recipe: studies/recipes/specialist.yaml}}"], "may not be called vae, judge"),
    ],
)
def test_a_plan_that_cannot_be(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert building.main(words) == 2
    assert message in capsys.readouterr().err


def test_an_adapter_is_all_that_a_specialist_trains(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    """The base stays as it was; the file read back is the averaged adapter; a text encoder cannot train along."""
    brief = building.read([PLAN]).specialists["portrait"].overrides
    words = [*brief, f"model.folder={tiny_pipeline_folder}", f"trainer.folder={tmp_path / 'text'}"]
    words += ["data.samples={t2i: {text: 4}}", "pretrain.lora_rank=3"]
    recipe = reading.load("studies/recipes/specialist.yaml", words)
    file = building.pretrain(recipe, *building.world_sources(recipe, every=2))
    assert file == tmp_path / "text" / "text.safetensors"
    adapter = lora_files.read(file)
    base = single_role(families.load(str(tiny_pipeline_folder))).network(TEACHER).transformer
    linears = {name for name, layer in base.named_modules() if isinstance(layer, torch.nn.Linear)}
    assert set(adapter) == {name for name in linears if "transformer_blocks" in name}
    assert all(len(layer.down) == 3 for layer in adapter.values())
    assert any(layer.up.abs().max() > 0 for layer in adapter.values())
    lines = [json.loads(line) for line in (tmp_path / "text" / "metrics.jsonl").read_text().splitlines()]
    assert {name for name in lines[-1] if name.startswith("learning_rate/")} == {"learning_rate/transformer"}
    assert not (tmp_path / "text" / "teacher").exists()
    with pytest.raises(UserError, match=r"text_encoder_lr=0"):
        reading.load("studies/recipes/specialist.yaml", ["pretrain.text_encoder_lr=1e-3"])
