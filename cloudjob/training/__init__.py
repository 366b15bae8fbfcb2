"""What a training is made of, for the stage that runs one and the bench that measures one."""
