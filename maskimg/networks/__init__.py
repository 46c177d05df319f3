"""Networks that predict masked codes, and what they are built of: ours, those of published models, and a wrapper
for anybody else's. They know codes and conditions, but no picture and no sampling loop."""
