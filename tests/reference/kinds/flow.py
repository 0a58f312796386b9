"""Golden runners: flow transformers and samplers (golden cases A)."""

from __future__ import annotations

import torch

from tests.reference.golden_harness import Case, assert_close, kind
from trellis_core.flow.rope import rotary_phases
from trellis_core.flow.sampler import SamplerParams, flow_schedule, sample
from trellis_core.flow.slat import SLatFlowModel, SLatFlowParams
from trellis_core.flow.structure import SparseStructureFlowModel, SparseStructureFlowParams
from trellis_core.weights.network_file import RECOMPUTED

NETWORKS = {
    "SparseStructureFlowModel": (SparseStructureFlowModel, SparseStructureFlowParams),
    "SLatFlowModel": (SLatFlowModel, SLatFlowParams),
    "ElasticSLatFlowModel": (SLatFlowModel, SLatFlowParams),
}


def load(case: Case) -> torch.nn.Module:
    """The network of a case; every stored tensor but recomputable ones must have a place, every parameter a tensor."""
    config = case.json("model")
    network, params = NETWORKS[config["name"]]
    model = network(params.from_args(config["args"])).eval()
    model.load_state_dict({k: v for k, v in case.tensors("model").items() if not RECOMPUTED.fullmatch(k)})
    return model


def tolerance(case: Case, fp32: float = 2e-5) -> float:
    return 0.15 if case.json("model")["args"].get("dtype") in ("bfloat16", "float16") else fp32


def known_latent(inputs: dict[str, torch.Tensor]) -> torch.Tensor | None:
    """What a texture flow sees beside its noise; the cases spell its name in two ways."""
    return inputs.get("concat_feats", inputs.get("concat_cond"))


@kind(r"ss_flow.*")
@torch.no_grad()
def structure_flow(case: Case) -> None:
    model = load(case)
    x = case.inputs
    assert_close(model(x["x"], x["t"], x["cond"]), case.outputs["v"], tolerance(case), "v")
    if "rope_cos" in case.outputs:
        p = model.params
        voxels = torch.cartesian_prod(*[torch.arange(p.resolution)] * 3)
        phases = rotary_phases(voxels, p.model_channels // p.heads)
        for phase, name in zip(phases, ("cos", "sin"), strict=True):
            assert_close(phase.squeeze(1), case.outputs[f"rope_{name}"], 2e-6, f"rope_{name}")


@kind(r"slat_flow.*")
@torch.no_grad()
def slat_flow(case: Case) -> None:
    model = load(case)
    x = case.inputs
    concat = known_latent(x)
    v = model(x["feats"], x["coords"], x["t"], x["cond"], concat)
    assert_close(v, case.outputs["v"], tolerance(case), "v")
    if "v_listcond" in case.outputs:
        cond = [x[key] for key in sorted(k for k in x if k.startswith("cond_list."))]
        v = model(x["feats"], x["coords"], x["t"], cond, concat)
        assert_close(v, case.outputs["v_listcond"], tolerance(case), "v_listcond")


# What the reference's samplers do with parameters that are not given.
UNGUIDED = {"FlowEulerSampler": {"guidance_strength": 1.0}}


@kind(r"sampler_(dense|sparse).*")
@torch.no_grad()
def sampler(case: Case) -> None:
    meta, x, model = case.json("meta"), case.inputs, load(case)
    given = UNGUIDED.get(meta.get("sampler"), {}) | meta["params"]
    if "guidance_interval" in given:
        given["guidance_interval"] = tuple(given["guidance_interval"])
    params, atol = SamplerParams(**given), tolerance(case, 5e-5)
    times = flow_schedule(params.steps, params.rescale_t)
    assert [step["t"] for step in meta["schedule"]] == times[:-1]
    assert [step["t_prev"] for step in meta["schedule"]] == times[1:]

    calls: list[bool] = []
    concat = known_latent(x)

    def velocity(state: torch.Tensor, t: torch.Tensor, guided: bool) -> torch.Tensor:
        calls.append(guided)
        cond = x["cond"] if guided else x["neg_cond"]
        return model(state, x["coords"], t, cond, concat) if "coords" in x else model(state, t, cond)

    def check(i: int, state: torch.Tensor, estimate: torch.Tensor) -> None:
        for name, actual in ((f"x_t.{i:02}", state), (f"x_0.{i:02}", estimate)):
            if name in case.outputs:
                assert_close(actual, case.outputs[name], atol, name)

    rows = x["coords"][:, 0].long() if "coords" in x else None
    result = sample(
        velocity, x["noise"], params, cond=True, neg=False, sigma_min=meta["sigma_min"], sample_rows=rows, on_step=check
    )
    assert_close(result, case.outputs["samples"], atol, "samples")
    low, high = params.guidance_interval
    acting = [low <= t <= high for t in times[:-1]]
    strength = params.guidance_strength
    if strength not in (0, 1):
        assert [step["cfg"] for step in meta["schedule"]] == acting
    positive, negative = params.steps - sum(acting) * (strength == 0), sum(acting) * (strength != 1)
    assert (calls.count(True), calls.count(False)) == (positive, negative), "a call too many or too few"
