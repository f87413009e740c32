# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""transformers' common model, config and backbone tests over the URFM family (marker `common`)."""

import unittest
from unittest import mock

import pytest
import torch

from modeling_urfm import (
    URFMBackbone,
    URFMConfig,
    URFMForImageClassification,
    URFMForPreTraining,
    URFMForSemanticSegmentation,
    URFMModel,
)
from modeling_urfm.modeling_urfm import URFMForPreTrainingOutput

from .source import load


pytestmark = pytest.mark.common
modeling, configuration, backbone = map(
    load, ("test_modeling_common", "test_configuration_common", "test_backbone_common")
)


class URFMModelTester:
    """A tiny model and its inputs, in the shape that the common tests ask for."""

    def __init__(self, parent, config_values=None):
        self.parent = parent
        self.batch_size = 3
        self.image_size = 32
        self.patch_size = 4
        self.num_channels = 3
        self.num_labels = 4
        self.hidden_size = 32
        self.num_hidden_layers = 2
        self.num_attention_heads = 4
        self.seq_length = 1 + (self.image_size // self.patch_size) ** 2
        self.is_training = True
        self.num_masks = 48
        self.mask_length = 64
        self.config_values = config_values or {}

    def get_config(self):
        return URFMConfig(
            image_size=self.image_size, patch_size=self.patch_size, num_channels=self.num_channels,
            hidden_size=self.hidden_size, num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads, intermediate_size=37, num_labels=self.num_labels,
            decoder_hidden_size=32, decoder_num_hidden_layers=2, decoder_num_attention_heads=4,
            decoder_intermediate_size=37, target_hidden_size=20, decode_head_hidden_size=16, **self.config_values,
        )  # fmt: skip

    def prepare_config_and_inputs_for_common(self):
        config = self.get_config()
        pixels = modeling.floats_tensor([self.batch_size, self.num_channels, self.image_size, self.image_size])
        return config, {"pixel_values": pixels}


class URFMModelTest(modeling.ModelTesterMixin, unittest.TestCase):
    all_model_classes = (URFMModel, URFMForPreTraining, URFMForImageClassification, URFMForSemanticSegmentation)
    test_resize_embeddings = False
    config_values = {}

    def setUp(self):
        self.model_tester = URFMModelTester(self, self.config_values)
        self.config_tester = configuration.ConfigTester(
            self, config_class=URFMConfig, has_text_modality=False, hidden_size=36, num_attention_heads=4
        )

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = dict(inputs_dict)
        tester = self.model_tester
        batch = inputs["pixel_values"].shape[0]
        if model_class is URFMForPreTraining:
            # the sequence that the encoder sees is CLS and the visible patches
            tester.encoder_seq_length = 1 + 16
            if return_labels and tester.get_config().target == "representation":
                inputs["target_features"] = torch.linspace(-1, 1, 64 * 20).view(1, 64, 20).expand(batch, -1, -1).clone()
        else:
            tester.encoder_seq_length = tester.seq_length
        if return_labels and model_class is URFMForImageClassification:
            inputs["labels"] = torch.zeros(batch, dtype=torch.long)
        if return_labels and model_class is URFMForSemanticSegmentation:
            inputs["labels"] = torch.zeros(batch, 32, 32, dtype=torch.long)
        return inputs

    def test_config(self):
        self.config_tester.run_common_tests()

    def test_training(self):
        with self._classes_with_a_loss():
            super().test_training()

    def check_training_gradient_checkpointing(self, *args, **kwargs):
        with self._classes_with_a_loss():
            super().check_training_gradient_checkpointing(*args, **kwargs)

    def _classes_with_a_loss(self):
        # The common tests leave out base models by a list of transformers' own names.
        return mock.patch.object(self, "all_model_classes", self.all_model_classes[1:])

    def test_model_get_set_embeddings(self):
        for model_class in self.all_model_classes:
            model = model_class(self.model_tester.get_config())
            self.assertIsInstance(model.get_input_embeddings(), torch.nn.Module)
            self.assertIsNone(model.get_output_embeddings())

    def test_model_outputs_equivalence(self):
        # The common test subtracts outputs, which boolean masks do not take: there they are compared as integers.
        init = URFMForPreTrainingOutput.__post_init__

        def as_integers(output):
            output.bool_masked_pos = output.bool_masked_pos.int()
            init(output)

        with mock.patch.object(URFMForPreTrainingOutput, "__post_init__", as_integers):
            super().test_model_outputs_equivalence()

    # These two compare with the tokens of one sequence length for all classes; ours differ by class.
    def test_hidden_states_output(self):
        self._lengths("hidden_states")

    def test_attention_outputs(self):
        self._lengths("attentions")

    def _lengths(self, name):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            model = model_class._from_config(config, attn_implementation="eager").eval()
            prepared = self._prepare_for_class(inputs, model_class)
            outputs = getattr(model(**prepared, **{f"output_{name}": True}), name)
            length = self.model_tester.encoder_seq_length
            self.assertEqual(len(outputs), 2 + (name == "hidden_states"))
            self.assertEqual(outputs[0].shape[1:], (length, 32) if name == "hidden_states" else (4, length, length))


class URFMPixelCrossBlockTest(URFMModelTest):
    """The other branches: pixel targets, cross-attention decoder, block masks, learned positions, mean pooling."""

    config_values = {
        "target": "pixel", "decoder_type": "cross_attention", "mask_strategy": "block", "pooling": "mean",
        "position_embedding_type": "learned", "drop_path_rate": 0.0,
    }  # fmt: skip


class URFMBackboneTest(backbone.BackboneTesterMixin, unittest.TestCase):
    all_model_classes = (URFMBackbone,)
    config_class = URFMConfig
    has_attentions = True

    def setUp(self):
        self.model_tester = URFMModelTester(self)
