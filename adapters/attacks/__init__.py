"""Backdoor triggers, the labels they aim at, and poisoning through ART."""

from adapters.attacks.adversarial import AdversarialCleanLabel, AdversarialPerturbation
from adapters.attacks.conduct import check_conduct, conduct_digest, mean_change, same_change
from adapters.attacks.fitted import DamagedTriggerError, FittedTrigger, run_fit
from adapters.attacks.fitting import Fit, FitContext, Pattern
from adapters.attacks.image_trigger import ImageTrigger, digest
from adapters.attacks.label_maps import AllToAll, AllToOne, CleanLabel, label_map
from adapters.attacks.poisoning import PoisonedSet, poison, poison_copies, poison_count
from adapters.attacks.triggers import FITS, TRIGGERS, Spec, build, check, fit_of, name_of, needs_fit, normal
from adapters.attacks.visibility import Visibility, visibility
from adapters.trigger_names import has_name

__all__ = [
    "FITS",
    "TRIGGERS",
    "AdversarialCleanLabel",
    "AdversarialPerturbation",
    "AllToAll",
    "AllToOne",
    "CleanLabel",
    "DamagedTriggerError",
    "Fit",
    "FitContext",
    "FittedTrigger",
    "ImageTrigger",
    "Pattern",
    "PoisonedSet",
    "Spec",
    "Visibility",
    "build",
    "check",
    "check_conduct",
    "conduct_digest",
    "digest",
    "fit_of",
    "has_name",
    "label_map",
    "mean_change",
    "name_of",
    "needs_fit",
    "normal",
    "poison",
    "poison_copies",
    "poison_count",
    "run_fit",
    "same_change",
    "visibility",
]
