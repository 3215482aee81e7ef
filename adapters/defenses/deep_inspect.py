"""DeepInspect (Chen, Fu, Zhao, Koushanfar, IJCAI 2019), fed clean images instead of inverted ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from adapters.defenses.inversion import Network
from adapters.defenses.pictures import png
from adapters.defenses.trigger_gan import Critic, TriggerGenerator
from adapters.defenses.trigger_synthesis import Synthesis, TriggerSynthesis
from adapters.protocols import DefenseContext, LabelledImages
from adapters.training_step import TrainingStep
from ibau_defense.cuda import sent

JUDGED = 128
"""Clean images a class's loss is averaged over, at most."""


class DeepInspect(TriggerSynthesis):
    """A conditional GAN learns triggers for all classes together; classes that come too cheap are backdoored.

    The generator's loss: cross-entropy of the victim towards the class on clip(x + G(z, t)) + ``gan_weight`` times the
    critic's squared error + ``size_weight`` times the hinge max(0, ‖G(z, t)‖₁ - ``free_size``), the norm as a mean over
    pixels and channels. The score of a class is that loss, averaged after training.
    """

    name: ClassVar[str] = "deep_inspect"

    epochs: Annotated[int, Field(ge=1)] = 40
    batch_size: Annotated[int, Field(ge=2)] = 32
    lr: Annotated[float, Field(gt=0)] = 1e-3
    gan_weight: Annotated[float, Field(ge=0)] = 0.1
    size_weight: Annotated[float, Field(ge=0)] = 50.0
    free_size: Annotated[float, Field(ge=0)] = 0.0
    noise: Annotated[int, Field(ge=1)] = 32
    width: Annotated[int, Field(ge=1)] = 32
    """Channels of the generator's and the critic's smaller layers."""

    def work(self, images: int, classes: int) -> float:
        return float(images * self.epochs)

    def synthesise(
        self, model: nn.Module, clean: LabelledImages, context: DefenseContext, generator: torch.Generator
    ) -> Synthesis:
        network = Network.of(model, self.precision, context.device)
        _, *shape = clean.images.shape
        maker = TriggerGenerator(context.num_classes, (shape[0], shape[1], shape[2]), self.noise, self.width)
        gan = Gan(maker.to(context.device), Critic(shape[0], self.width).to(context.device), generator)
        finished = self._train(gan, network, clean, context)
        losses = self._judge(gan, network, clean, context.num_classes)

        def stamp(images: Tensor, classes: Tensor) -> Tensor:
            with torch.no_grad():
                return (images + gan.triggers(classes)).clamp(0, 1)

        def pictures(label: int) -> dict[str, str]:
            with torch.no_grad():
                trigger = gan.triggers(torch.tensor([label], device=context.device))[0]
            return {"brighter": png(trigger.clamp_min(0)), "darker": png((-trigger).clamp_min(0))}

        figures = {"trigger_losses": losses.trigger, "norms": losses.norm, "success_rates": losses.success}
        return Synthesis(losses.total, stamp, figures, pictures, finished)

    def _train(self, gan: Gan, network: Network, clean: LabelledImages, context: DefenseContext) -> bool:
        making, judging = list(gan.maker.parameters()), list(gan.critic.parameters())
        adam = partial(torch.optim.Adam, lr=self.lr, betas=(0.5, 0.999), fused=context.device.type == "cuda")
        makers, critics = adam(making), adam(judging)

        def criticise(real: Tensor, noise: Tensor, goals: Tensor) -> Sequence[Tensor]:
            with torch.no_grad():
                fake = (real + gan.maker(noise, goals)).clamp(0, 1)
            verdict = (gan.critic(real) - 1).square().mean() + gan.critic(fake).square().mean()
            torch.autograd.backward(verdict, inputs=judging)
            return (verdict.detach(),)

        def make(real: Tensor, noise: Tensor, goals: Tensor) -> Sequence[Tensor]:
            triggers = gan.maker(noise, goals)
            loss = self._losses(gan, network, (real + triggers).clamp(0, 1), triggers, goals).total.mean()
            torch.autograd.backward(loss, inputs=making)
            return (loss.detach(),)

        critic_step = TrainingStep(criticise, judging, context.device, context.passes)
        maker_step = TrainingStep(make, making, context.device, context.passes)
        for _ in range(self.epochs):
            order = torch.randperm(len(clean.labels), generator=gan.generator).to(clean.images.device)
            for index in order.split(self.batch_size):
                real = clean.images[index]
                drawn = torch.randint(context.num_classes, (len(index),), generator=gan.generator)
                goals, noise = sent(drawn, real.device), sent(gan.noise(len(index)), real.device)
                if self.gan_weight > 0:
                    critic_step(real, noise, goals)
                    critics.step()
                maker_step(real, noise, goals)
                makers.step()
                if context.out_of_time():
                    return False
        return True

    def _losses(self, gan: Gan, network: Network, fake: Tensor, triggers: Tensor, goals: Tensor) -> Losses:
        logits = network.logits(fake)
        trigger = F.cross_entropy(logits, goals, reduction="none")
        norm = triggers.abs().mean(dim=(1, 2, 3))
        total = trigger + self.size_weight * (norm - self.free_size).clamp_min(0)
        if self.gan_weight > 0:
            total = total + self.gan_weight * (gan.critic(fake) - 1).square()
        return Losses(total, trigger, norm, (logits.argmax(dim=1) == goals).float())

    def _judge(self, gan: Gan, network: Network, clean: LabelledImages, classes: int) -> Losses:
        """Each (K,): means over images of other classes (of its own, where the clean set has no other)."""
        rows = []
        with torch.no_grad():
            for label in range(classes):
                other = (clean.labels != label).nonzero().flatten()
                images = clean.images[(other if len(other) else torch.arange(len(clean.labels)))[:JUDGED]]
                goals = torch.full((len(images),), label, device=images.device)
                triggers = gan.triggers(goals)
                losses = self._losses(gan, network, (images + triggers).clamp(0, 1), triggers, goals)
                rows.append(torch.stack([part.mean() for part in losses]))
        return Losses(*torch.stack(rows, dim=1))


class Losses(NamedTuple):
    """Each (n,): the whole loss, its cross-entropy, the trigger's ℓ1 norm as a mean, whether the class was reached."""

    total: Tensor
    trigger: Tensor
    norm: Tensor
    success: Tensor


@dataclass(frozen=True)
class Gan:
    maker: TriggerGenerator
    critic: Critic
    generator: torch.Generator

    def triggers(self, classes: Tensor) -> Tensor:
        """(n,) classes to (n, C, H, W) triggers in [-1, 1], of fresh noise."""
        made: Tensor = self.maker(self.noise(len(classes)).to(classes.device), classes)
        return made

    def noise(self, count: int) -> Tensor:
        """(count, noise), on the CPU."""
        return torch.randn(count, self.maker.noise, generator=self.generator)
