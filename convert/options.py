"""The options of a conversion, named as those of llama-quantize and convert_hf_to_gguf.py."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

from gguf_bof4.convert.list_rules import ListRules, parse_rules
from gguf_bof4.convert.output_types import OutputType, output_type_of
from gguf_bof4.convert.policy import Rules, parse_pattern, parse_type
from gguf_bof4.convert.recipe import Recipe, read_recipe
from gguf_bof4.encoders import DEFAULT as DEFAULT_ENCODER
from gguf_bof4.encoders import encoder_of
from gguf_bof4.encoders.encoder import (
    LEAST_REFINED_SAMPLES,
    PRECISIONS,
    REFINED_SAMPLES,
    REFINEMENTS,
    ROUNDING,
    Encoder,
    Refinement,
)
from gguf_bof4.errors import UserError

DEFAULT_OPQ = "0.95"
"""The default quantile of outlier lists.

It is the paper's; on the reference models it lowers the KL divergence by 14 % for 0.1 bits (bench/opq.csv).
"""

RANDOM_TOKENS = "random"
"""The value of --imatrix that makes an importance matrix by running the model on random tokens."""

SELF = "self"
"""The value of --calibration and --imatrix for a text that the model itself writes."""


@dataclass(frozen=True)
class Options:
    """The options as text and numbers, so that they can be sent to another process.

    Attributes:
        type: name of one of `output_types.OUTPUT_TYPES`.
        token_embedding_type: name of a ggml type; None means Q6_K.
        output_tensor_type: the same for output.weight, and for tied token embeddings.
        tensor_types: PATTERN=TYPE, the first match counts.
        recipe: path of a recipe, which says what `tensor_types` and `opq` with a pattern do not.
        opq: quantiles of outlier lists: "Q" or "off" for all tensors, PATTERN=Q or PATTERN=off for those whose name
            the regular expression is found in; the first match counts.
        opq_bits: bits per weight for outliers that are chosen by what they save, in the place of a quantile for all
            tensors.
        encoder: name of one of the encoders.
        imatrix: path of an importance matrix of llama-imatrix; RANDOM_TOKENS and SELF make one. None: none, and SELF
            with `equalize`.
        calibration: path of the calibration text of an encoder that runs the model, or several: files, folders, JSON
            Lines of chats, or SELF, which None means, too.
        samples: number of windows of that text; None: as many as the widest layer needs.
        sample_length: tokens in each.
        damping: Hessian damping, as a fraction of the mean diagonal.
        act_order: columns with the largest inputs are quantized first.
        token_weights: tokens count by how much the model's loss depends on the outputs of a matrix for them.
        device: that runs the model, as torch names it.
        precision: in which an encoder that runs the model multiplies matrices, one of PRECISIONS.
        refine: train after encoding, by an encoder that runs the model.
        refine_parts: what: some of encoder.REFINEMENTS, separated by commas.
        refine_minutes: how long.
        refine_steps: the same in steps, in the place of minutes.
        refine_samples: windows of the calibration texts that are trained on or judge, at most.
        equalize: weights and inputs of each channel are made more alike first, by the powers of the importance matrix.
        equalize_strength: how much: 0 not at all, 0.5 until they are equal; None: as is measured to be best.
        pure: embeddings and output get `type`, too.
        leave_output_tensor: output.weight keeps its type.
        split_max_size: bytes of tensor data in a part, "N", "NK", "NM" or "NG"; 0 means one file.
        model_name: general.name.
        threads: 0 means all cores.
        force: overwrite an output that exists.
        dry_run: decide everything, write nothing.
        verbose: show what upstream's converter logs.
    """

    type: str = "BOF4_S"
    token_embedding_type: str | None = None
    output_tensor_type: str | None = None
    tensor_types: tuple[str, ...] = ()
    recipe: str | None = None
    opq: tuple[str, ...] = ()
    opq_bits: float | None = None
    encoder: str = DEFAULT_ENCODER.name
    imatrix: str | None = None
    calibration: str | tuple[str, ...] | None = None
    samples: int | None = None
    sample_length: int = 512
    damping: float = 0.5
    act_order: bool = True
    token_weights: bool = False
    device: str = "cpu"
    precision: str = PRECISIONS[0]
    refine: bool = False
    refine_parts: str = ROUNDING
    refine_minutes: float = 20.0
    refine_steps: int | None = None
    refine_samples: int = REFINED_SAMPLES
    equalize: bool = False
    equalize_strength: float | None = None
    pure: bool = False
    leave_output_tensor: bool = False
    split_max_size: str = "0"
    model_name: str | None = None
    threads: int = 0
    force: bool = False
    dry_run: bool = False
    verbose: bool = False

    @property
    def output_type(self) -> OutputType:
        """The type that `type` names.

        Raises:
            UserError: there is no such type.
        """
        return output_type_of(self.type)

    @property
    def chosen_encoder(self) -> Encoder:
        """The encoder that `encoder` names.

        Raises:
            UserError: there is none.
        """
        return encoder_of(self.encoder)

    @property
    def chosen_recipe(self) -> Recipe | None:
        """The recipe that `recipe` names.

        Raises:
            UserError: it cannot be read, or a line of it is wrong.
        """
        return None if self.recipe is None else read_recipe(Path(self.recipe), self.imatrix is not None)

    @property
    def rules(self) -> Rules:
        """The options that decide types, and the recipe behind them, parsed.

        Raises:
            UserError: a type does not exist, or a pattern is malformed.
        """
        recipe = self.chosen_recipe
        rules = self.rules_of_options
        return rules if recipe is None else replace(rules, patterns=rules.patterns + recipe.types)

    @property
    def rules_of_options(self) -> Rules:
        """The options that decide types, without the recipe.

        Raises:
            UserError: a type does not exist, or a pattern is malformed.
        """
        embedding, output = self.token_embedding_type, self.output_tensor_type
        importance = self.imatrix is not None
        return Rules(
            base=self.output_type.qtype,
            token_embedding=None if embedding is None else parse_type(embedding, importance),
            output_tensor=None if output is None else parse_type(output, importance),
            patterns=tuple(parse_pattern(text, importance) for text in self.tensor_types),
            pure=self.pure or self.output_type.for_all,
            leave_output=self.leave_output_tensor,
        )

    @property
    def list_rules(self) -> ListRules:
        """Which tensors get outlier lists.

        Raises:
            UserError: a quantile or a number of bits is not possible, or a pattern is malformed.
        """
        rules, recipe = parse_rules(self.opq, DEFAULT_OPQ, self.opq_bits), self.chosen_recipe
        return rules if recipe is None else replace(rules, patterns=rules.patterns + recipe.list_rules(rules.default))

    @property
    def named_sources(self) -> tuple[str, ...]:
        """The calibration texts that are named, whoever reads them: paths, or SELF, also where none is."""
        given = self.calibration or SELF
        return (given,) if isinstance(given, str) else given

    @property
    def calibration_sources(self) -> tuple[str, ...]:
        """The calibration texts that an encoder which runs the model reads: paths, or SELF."""
        return () if self.chosen_encoder.calibrate is None else self.named_sources

    @property
    def calibration_texts(self) -> tuple[Path, ...]:
        """The same as paths, where SELF has been replaced by one."""
        return tuple(Path(text) for text in self.calibration_sources)

    @property
    def split_bytes(self) -> int:
        """`split_max_size` in bytes; K, M and G are powers of 1000, as upstream has them.

        Raises:
            UserError: not a size.
        """
        match = re.fullmatch(r"(\d+)([KMG]?)", self.split_max_size)
        if match is None:
            raise UserError(
                f"--split-max-size {self.split_max_size}: give a number of bytes, or one followed by K, M or G"
            )
        return int(match[1]) * {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3}[match[2]]

    @property
    def completed(self) -> Options:
        """The same, with the importance matrix that `equalize` needs."""
        return replace(self, imatrix=SELF) if self.equalize and self.imatrix is None else self

    def check(self) -> None:
        """Raise UserError where an option is wrong, before anything is read."""
        _ = self.rules, self.list_rules, self.split_bytes
        encoder, output_type = self.chosen_encoder, self.output_type
        if self.imatrix is not None and not encoder.takes_imatrix:
            raise UserError(
                f"--encoder {encoder.name} uses no importance matrix: use --imatrix with --encoder "
                f"{DEFAULT_ENCODER.name}"
            )
        if encoder.calibrate is not None and not encoder.can_encode(output_type.qtype):
            name = output_type.name
            raise UserError(f"--encoder {encoder.name} is not implemented for {name}: choose another encoder")
        self._check_refinement(encoder)
        self._check_equalization()
        self._check_calibration(encoder)

    @property
    def refinement(self) -> Refinement | None:
        """How the model is trained after encoding; None where it is not.

        Raises:
            UserError: there is no such part.
        """
        if not self.refine:
            return None
        return Refinement(self.refine_minutes, self.refine_steps, self._refined_parts, self.refine_samples)

    @property
    def _refined_parts(self) -> tuple[str, ...]:
        """The parts of a refinement in the order in which they are done."""
        given = self.refine_parts.split(",")
        if unknown := [part for part in given if part not in REFINEMENTS]:
            raise UserError(f"--refine-parts {self.refine_parts}: {unknown[0]!r} is none of {', '.join(REFINEMENTS)}")
        return tuple(part for part in REFINEMENTS if part in given)

    def _check_refinement(self, encoder: Encoder) -> None:
        if not self.refine:
            if self.refine_minutes != Options.refine_minutes or self.refine_steps is not None:
                raise UserError("--refine-minutes and --refine-steps say how long --refine trains: give --refine, too")
            if self.refine_parts != Options.refine_parts:
                raise UserError("--refine-parts says what --refine trains: give --refine, too")
            if self.refine_samples != Options.refine_samples:
                raise UserError("--refine-samples says how much text --refine trains on: give --refine, too")
            return
        _ = self._refined_parts
        if encoder.calibrate is None:
            raise UserError(f"--encoder {encoder.name} runs no model, so it takes no --refine: use --encoder gptq")
        if not 0 < self.refine_minutes < math.inf:
            raise UserError(f"--refine-minutes {self.refine_minutes}: give a number above 0")
        if self.refine_steps is not None and self.refine_steps < 1:
            raise UserError(f"--refine-steps {self.refine_steps}: give 1 or more")
        if self.refine_samples < LEAST_REFINED_SAMPLES:
            raise UserError(
                f"--refine-samples {self.refine_samples}: some train and others judge, so give {LEAST_REFINED_SAMPLES} "
                "or more"
            )

    def _check_equalization(self) -> None:
        if not self.equalize:
            if self.equalize_strength is not None:
                raise UserError("--equalize-strength says how much --equalize changes: give --equalize, too")
            return
        if self.equalize_strength is not None and not 0 < self.equalize_strength <= 1:
            raise UserError(f"--equalize-strength {self.equalize_strength}: give a number above 0, at most 1")

    def _check_calibration(self, encoder: Encoder) -> None:
        if encoder.calibrate is None:
            if self.calibration:
                raise UserError(f"--encoder {encoder.name} runs no model, so it takes no --calibration")
            return
        if (self.samples is not None and self.samples < 1) or self.sample_length < 2:
            raise UserError("--calibration-samples must be 1 or more, --calibration-length 2 or more")
        if self.precision not in PRECISIONS:
            raise UserError(f"--calibration-precision {self.precision}: give one of {', '.join(PRECISIONS)}")
        if not 0.0 <= self.damping < 1.0:
            raise UserError(f"--damping {self.damping}: give a number from 0 to 1, such as 0.5")
