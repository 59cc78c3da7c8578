"""Is refusal mediated by one direction? Takes out the difference of means and counts what is still refused."""

import torch
from jaxtyping import Bool
from torch import Tensor
from transformers import PreTrainedModel

from tunescope.interventions.directions import without_direction
from tunescope.measure.activations import Classes
from tunescope.measure.findings import UNSAFE, Findings, Sample
from tunescope.measure.interventions import Refused, inner_layers
from tunescope.models.inputs import Inputs
from tunescope.models.sites import Site
from tunescope.probes.controls import haar
from tunescope.probes.directions import difference_of_means
from tunescope.rng import Stream

RANDOM = 5  # random directions that stand against the one


def measure_ablation(
    found: Findings,
    model: PreTrainedModel,
    classes: Classes,
    sample: Sample,
    refused: Refused,
    few: int,
    stream: Stream,
) -> None:
    """Refusal of unsafe prompts without the difference of means of the layer (not the last) where that lowers it most.

    The layer is chosen on the fit prompts and the result measured on others, so that the choice does not flatter it.
    """
    layers = inner_layers(model)
    means = {layer: difference_of_means(*classes.means(Site(layer, "resid_post"))) for layer in layers}

    def ablated(direction: Tensor, prompts: Inputs) -> Bool[Tensor, " n"]:
        with without_direction(model, direction):
            return refused(model, prompts)

    choosing, prompts = sample.fit[UNSAFE][:few], sample.score[UNSAFE][:few]
    left = [int(ablated(means[layer], choosing).sum()) for layer in layers]
    chosen = left.index(min(left))
    width, device = len(means[chosen]), means[chosen].device
    random = [haar(width, 1, stream("random direction", i), device)[:, 0] for i in range(RANDOM)]
    before = refused(model, prompts).double()
    found.rate("refusal_intact", before, kind=UNSAFE)
    for name, control, tried in (("direction", "", [means[chosen]]), ("random", "haar", random)):
        after = torch.stack([ablated(direction, prompts) for direction in tried]).double()
        found.rate("refusal_without_direction", after, kind=UNSAFE, control=control, layer=chosen)
        found.score(f"refusal_lost_without_{name}", before - after.mean(0), kind=UNSAFE, layer=chosen)
