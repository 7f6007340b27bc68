"""The channels of a model: which columns of its features belong together, which are dead, and how layers lose them."""

from sparsegnn.width.flow import Flow as Flow
