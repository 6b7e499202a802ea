"""Supervised fine-tuning: only the answers of a conversation are targets, and they may have weights."""

from __future__ import annotations

from datamodules.batch import IGNORE_INDEX, Batch, shifted_targets
from lightning_modules.base import CausalLMModule
from lightning_modules.metrics.answers import AnswerScores
from lightning_modules.metrics.objective import Objective
from lightning_modules.models.causal_lm_with_loss import SummedLoss


class SupervisedFinetuningModule(CausalLMModule):
    """Next-token prediction on the answers of conversations; see `CausalLMModule` for its arguments.

    The data says what is trained: `labels` cover answers, and `loss_weights`, where there are any, make conversations
    count alike whatever their length. The log of training has `train/loss`, the mean over label tokens as in continued
    pre-training, `train/label_tokens` of the step, and with weights `train/objective`, the weighted mean that is
    minimised. Validation has loss and token accuracy of the answers, overall and by length of the conversation, never
    weighted; [T, V] logits exist in neither.
    """

    def _make_metrics(self) -> None:
        super()._make_metrics()
        self.val_loss = AnswerScores(max_seqlen=self.max_seqlen)
        self.objective = Objective()

    def _observe(self, batch: Batch, loss: SummedLoss) -> None:
        super()._observe(batch, loss)
        self.objective.update(batch, loss.loss_sum)

    def _observed(self) -> dict[str, float]:
        numbers = super()._observed() | self.objective.compute()
        self.objective.reset()
        return numbers

    def _observe_validation(self, batch: Batch, loss: SummedLoss) -> None:
        targets = shifted_targets(batch) != IGNORE_INDEX
        self.val_loss.update(loss.token_losses, loss.token_correct, targets, batch["document_ids"])
