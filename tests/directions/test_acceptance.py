"""What has to hold for directions, their edits, probes and distances, and the tests that show it."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent
SHOWN = {
    "nothing is written along a removed direction: Linear, Conv1D, embeddings, experts in either order, squares": [
        "edits/test_weight_edits.py: test_nothing_is_written_along_the_direction",
        "edits/test_weight_edits.py: test_each_kind_of_tensor_by_its_own_formula",
    ],
    "ablation at every write is the edit of the weights": ["edits/test_weight_edits.py: test_hooks_equal_weights"],
    "the LoRA form is the edit": ["edits/test_weight_edits.py: test_an_adapter_is_the_edit"],
    "old norms of columns keep the direction away, old norms of rows do not": [
        "edits/test_weight_edits.py: test_norms_of_columns_keep_the_direction_away_and_norms_of_rows_do_not"
    ],
    "LEACE: no class gap, nothing linear is left, the mean stays": [
        "directions/test_methods.py: test_erased_rows_have_no_gap_and_the_same_mean",
        "directions/test_methods.py: test_nothing_linear_tells_erased_classes_apart",
    ],
    "the first axis of uncentred differences is near the difference of means, of centred ones it is not": [
        "directions/test_methods.py: test_pca_of_uncentred_differences_finds_what_centring_takes_out",
        "directions/test_peer_vectors.py: test_centred_differences_point_across_the_mean_difference",
    ],
    "a control vector of another tool is read and written, at its layer; what it cannot say is refused": [
        "directions/test_direction_files.py: test_repengs_file_is_read_and_written_byte_by_byte",
        "directions/test_direction_files.py: test_a_number_means_the_activation_that_the_tool_reads",
        "directions/test_direction_files.py: test_what_a_control_vector_cannot_say_is_refused",
    ],
    "a marker at the output of a block is at the input of the next": [
        "directions/test_fitting.py: test_the_marker_off_by_one",
        "directions/test_fitting.py: test_a_marker_put_at_the_output_of_a_block_arrives_at_the_input_of_the_next",
    ],
    "a row alone is the row in a batch, also gated; generation with a cache is the whole pass": [
        "probes/test_rows.py: test_states_are_those_of_each_text_alone",
        "edits/test_conditions.py: test_a_row_in_a_batch_is_the_row_alone",
        "edits/test_along.py: test_generation_equals_whole_passes",
        "models/test_generating.py: test_scopes_split_prompt_and_generated_tokens",
        "models/test_generating.py: test_edits_in_generation_equal_edits_in_full_passes",
    ],
    "a clamp to the present value is the identity; the difference times the row is decoding and the error": [
        "edits/test_edits.py: test_a_no_op_is_the_identity",
        "edits/test_edits.py: test_clamp_is_x_plus_difference_times_row",
        "edits/test_splicing.py: test_an_edit_of_latents_is_the_edit_of_the_activation",
    ],
    "Newton's method, shrinkage and the small inverse are scikit-learn's and NumPy's": [
        "probes/test_probe_fitting.py: test_logistic_is_scikit_learns_at_every_place_and_strength",
        "probes/test_probe_fitting.py: test_shrinkage_from_products_of_rows_is_scikit_learns",
        "probes/test_distances.py: test_distances_are_numpys_dense_ones_with_either_form_of_the_inverse",
    ],
    "distances: Euclid after whitening, 0 for one class, free of scale, of rows and of units": [
        "probes/test_distances.py: test_mahalanobis_is_euclid_after_whitening",
        "probes/test_distances.py: test_relative_of_one_class_is_zero_and_refused",
        "probes/test_distances.py: test_the_scale_of_a_state_does_not_count_on_the_sphere",
        "probes/test_distances.py: test_neither_more_rows_nor_other_units_change_a_distance",
    ],
    "selectivity is near 0 for what is learnt by heart, and high for a concept": [
        "probes/test_measures.py: test_selectivity_is_near_zero_for_types_learnt_by_heart_and_high_for_a_concept"
    ],
    "a threshold keeps its rate of false alarms on new rows": [
        "probes/test_measures.py: test_a_threshold_keeps_its_rate_of_false_alarms_on_new_rows",
        "probes/test_measures.py: test_over_many_draws_the_rate_is_at_most_the_target",
    ],
    "after an edit, and after an error in it, the model is what it was": [
        "models/test_models.py: test_hooks_are_gone_after_an_exception_and_contexts_nest",
        "models/test_running.py: test_nothing_stays_on_the_modules_after_an_error",
        "edits/test_weight_edits.py: test_all_is_put_back_also_after_errors_and_nested",
    ],
    "behind a norm the direction is removed as gain times direction": [
        "edits/test_weight_edits.py: test_behind_a_norm_the_direction_itself_would_stay"
    ],
}


@pytest.mark.parametrize("claim", SHOWN)
def test_every_claim_has_its_tests(claim: str) -> None:
    for one in SHOWN[claim]:
        file, name = one.split(": ")
        tree = ast.parse((TESTS / file).read_text())
        found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
        assert len(found) == 1, one
        assert any("assert" in ast.unparse(line) for line in found[0].body), one
