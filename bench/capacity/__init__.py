"""Computes what a number of uploads a second, or of images, needs: from figures that the benchmark measured."""
